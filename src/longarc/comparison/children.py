"""Processes of the comparison's own: started, watched, asked, and never left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from longarc.errors import RunError

POLL = 0.5
"""Seconds between two looks at a training process."""

PATIENCE = 120.0
"""Seconds that an interrupted training may take to save its state."""


@contextmanager
def _started(module: str, words: Sequence[object], log: Path, **streams: Any) -> Iterator[Any]:
    """A module run by this Python, in a session of its own: Ctrl-C is passed on by its parent."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        # -P: a module in the present folder, a user's yaml.py say, is not to be imported.
        command = [sys.executable, "-P", "-m", module, *map(str, words)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=file, text=True, start_new_session=True,
            **{"stdout": file, **streams},
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def run_training(slot: Path, log: Path, watch: Callable[[], None]) -> int:
    """Run the training process of a slot to its end and return its exit status.

    ``watch`` is called twice a second. On Ctrl-C the process is told, saves its state, and
    KeyboardInterrupt goes on; a second Ctrl-C ends it at once.
    """
    with _started("longarc.comparison.training_process", [slot], log) as process:
        try:
            while process.poll() is None:
                watch()
                time.sleep(POLL)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT if sys.platform != "win32" else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=PATIENCE)
            raise
        return process.returncode


def how_it_ended(status: int, log: Path) -> str:
    """Why a process without an explanation of its own failed, and where to read on.

    >>> how_it_ended(-9, Path("log.txt"))
    'the process was killed (signal 9), as systems do when memory runs out; see log.txt'
    """
    if status == -9:
        return f"the process was killed (signal 9), as systems do when memory runs out; see {log}"
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"the process {ended}; see {log}"


class Reader:
    """A process that predicts the same documents again and again."""

    def __init__(self, process: Any, log: Path):
        self.process = process
        self.log = log

    def answer(self) -> dict[str, Any]:
        """The next line it says; RunError if it ended instead."""
        line = self.process.stdout.readline()
        if not line.endswith("\n"):  # it ended, perhaps in the middle of one
            raise RunError(how_it_ended(self.process.wait(), self.log))
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        """Let it predict every document once; ``seconds``, ``peak_mib``, ``gpu_peak_mib``."""
        stream: TextIO = self.process.stdin
        with suppress(BrokenPipeError):  # the answer says how it ended
            stream.write("turn\n")
            stream.flush()
        return self.answer()


@contextmanager
def reader(run: Path, documents: Path, log: Path) -> Iterator[Reader]:
    """The process that predicts with a run's model, while the block lasts."""
    module = "longarc.comparison.reading_process"
    with _started(module, [run, documents], log, stdout=subprocess.PIPE) as process:
        yield Reader(process, log)
