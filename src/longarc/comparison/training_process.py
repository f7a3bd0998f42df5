"""One candidate's training, in the process that this module is the program of.

``python -m longarc.comparison.training_process SLOT`` does what SLOT/job.json says. It ends when
its standard input is closed, as that means that the comparison has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from longarc.comparison.budget import Budget, epochs_for
from longarc.comparison.candidates import in_a_comparison
from longarc.comparison.children import PATIENCE
from longarc.comparison.memory import gpu_peak_mib, peak_mib
from longarc.comparison.scratch_names import SCRATCH
from longarc.comparison.slot import Slot, read
from longarc.errors import Interrupted, LongarcError
from longarc.files import write_json, write_text
from longarc.hold import held
from longarc.training.config import TrainConfig
from longarc.training.run_folder import RunFolder


def main(slot: Slot) -> int:
    """Do it, and end with the comparison."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return work(slot)


def work(slot: Slot) -> int:
    """Train; 0 when all went well, 1 for a failure that is explained, 130 when interrupted."""
    try:
        # The process of a comparison that was killed may still be saving its state; only then is
        # it known what it spent.
        with held(slot.path, wait=PATIENCE):
            before, started = read(slot.spent), time.monotonic()
            try:
                _train(slot, read(slot.job), before, started)
            except Interrupted:
                write_json(slot.spent, _spent(before, started))
                return 130
    except LongarcError as error:
        write_json(slot.failure, {"why": in_a_comparison(str(error))})
        return 1
    except Exception as error:
        write_json(slot.failure, {"why": explained(error)})
        raise
    return 0


def explained(error: Exception) -> str:
    """An error that says nothing of the fix, in a line.

    >>> explained(ValueError("no words"))
    'ValueError: no words'
    """
    return f"{type(error).__name__}: {error}"[:2000]


def _train(slot: Slot, job: dict[str, Any], before: dict[str, Any], started: float) -> None:
    config = TrainConfig(**job["config"])
    config.validate()
    import torch
    from rich.console import Console

    from longarc.report.card import model_card
    from longarc.report.html import write_report
    from longarc.training.job import train

    if config.model in SCRATCH:
        from longarc.comparison.scratch_models import scratch_folder

        length = config.max_length or job["length"]
        folder = scratch_folder(config.model, length, Path(job["models"]), config.seed)
        config.model, config.max_length = str(folder), length
    steps = _steps(slot, config, job)
    if steps:
        config.epochs = epochs_for(steps, job["documents"], config.batch_size, config.accumulation)
    folder = RunFolder(config.run)
    config.resume = folder.config_file.is_file() and not folder.complete
    if folder.complete:  # the process before had trained it, and ended before it said so
        spent = before
    else:
        train(config, console=Console(file=sys.stdout, width=200))
        spent = _spent(before, started)
        write_json(slot.spent, spent)  # should what follows fail or be interrupted
    write_text(folder.model / "README.md", model_card(folder.path))
    write_report(folder.path)
    write_json(
        slot.training,
        {**spent, "steps": steps, "threads": torch.get_num_threads(), "device": _device(config)},
    )
    if job["baseline"]:  # only now, as neither its time nor its memory is the candidate's
        write_json(slot.baseline, _baseline(config))


def _baseline(config: TrainConfig) -> dict[str, Any]:
    """Figures by split of TF-IDF and a linear SVM, or ``why`` there are none."""
    from longarc.training.baseline import LinearBaseline
    from longarc.training.evaluation import score_decisions
    from longarc.training.preparation import prepare
    from longarc.training.progress import Reporter

    try:
        prepared = prepare(config, Reporter(None))
        train, space = prepared.splits.train, prepared.space
        linear = LinearBaseline()
        linear.fit(train.texts, space.encode(train.labels or []), space=space, seed=config.seed)
        return {
            split: score_decisions(part, space, linear.predict(part.texts))
            for split, part in prepared.splits.items()
            if split != "train"
        }
    except LongarcError as error:
        return {"why": str(error)}
    except Exception as error:
        traceback.print_exc()  # into the log
        return {"why": explained(error)}


def _steps(slot: Slot, config: TrainConfig, job: dict[str, Any]) -> int:
    """Updates that the budget comes to; once measured they stay, as a resumed run needs them."""
    budget = Budget(**job["budget"])
    if budget.kind != "minutes" or config.freeze:
        return budget.steps(config)
    if not slot.pace.is_file():
        from longarc.comparison.pace import seconds_per_step

        seconds = seconds_per_step(config)
        steps = budget.steps(config, seconds)
        write_json(slot.pace, {"seconds_per_step": seconds, "steps": steps})
    return int(read(slot.pace)["steps"])


def _spent(before: dict[str, Any], started: float) -> dict[str, Any]:
    """Seconds and peaks of this process and the interrupted ones before it."""
    peaks = {"peak_mib": peak_mib(), "gpu_peak_mib": gpu_peak_mib()}
    return {
        "seconds": round(before.get("seconds", 0.0) + time.monotonic() - started, 1),
        "processes": before.get("processes", 0) + 1,
        **{
            name: max((p for p in (peak, before.get(name)) if p is not None), default=None)
            for name, peak in peaks.items()
        },
    }


def _device(config: TrainConfig) -> str:
    from longarc.training.prediction import chosen_device

    return chosen_device(config.device).type


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock would be held when the interpreter ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main(Slot(Path(sys.argv[1]))))
