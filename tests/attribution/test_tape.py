"""The states of a segment: kept to the bit, on a file that no killed process leaves behind."""

from __future__ import annotations

import torch

from longarc.attribution.tape import Tape


def test_states_come_back_and_the_folder_stays_as_it_was(tmp_path):
    torch.manual_seed(0)
    states = [{"weight": torch.randn(3, 4), "bias": torch.randn(3).double()} for _ in range(4)]
    with Tape(states[0], 3, moments=True, place=tmp_path) as tape:
        for step, parameters in enumerate(states):
            tape.keep_state(step, parameters)
        assert list(tmp_path.iterdir()) == []
        for step in reversed(range(4)):
            found = tape.views(tape.state(step))
            for name, value in states[step].items():
                assert torch.equal(found[name], value.double()), name
