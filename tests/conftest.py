"""The longest files first, so that no process waits long for the last test of another."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs whole stories lies beside this file; the order stays as it is otherwise."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)
