"""Signals that end work as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM stop the block as Ctrl-C does, and Ctrl-C where it was ignored, as in scripts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows no handler here
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        give_back(before)


def give_back(handlers: Mapping[Any, Any]) -> None:
    """Set signals' handlers again, as ``signal.signal`` returned them."""
    for number, handler in handlers.items():
        if handler is not None:  # a program's around Python cannot be given back
            signal.signal(number, handler)
