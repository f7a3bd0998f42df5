"""``longarc demo``: the table beside its run."""

from __future__ import annotations

import pytest

from longarc.cli.demo import write_demo_table
from longarc.data.table import open_table
from longarc.errors import OptionError

COLUMNS = {"text": ["MIT", "GPL"], "category": ["Permissive", "Copyleft"]}


@pytest.mark.parametrize("other", ["no table", {"text": ["mine"], "category": ["x"]}])
def test_only_the_demos_own_table_is_written_over(tmp_path, other):
    table = tmp_path / "runs" / "licences.parquet"
    write_demo_table(table, COLUMNS, overwrite=False)
    write_demo_table(table, COLUMNS, overwrite=False)  # of an earlier demo in the folder
    if isinstance(other, str):
        table.write_text(other)
    else:
        write_demo_table(table, other, overwrite=True)
    before = table.read_bytes()
    with pytest.raises(OptionError, match="is not the demo's table"):
        write_demo_table(table, COLUMNS, overwrite=False)
    assert table.read_bytes() == before
    write_demo_table(table, COLUMNS, overwrite=True)
    assert next(open_table(table).batches()) == COLUMNS
