"""One candidate's predictions, in a process that stays alive and takes its turn when asked.

``python -m longarc.comparison.reading_process RUN DOCUMENTS`` loads the model and says so. For each
line ``turn`` on its standard input it predicts every document once and answers with a line of JSON;
it ends when its standard input is closed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from longarc.comparison.memory import gpu_free_mib, gpu_peak_mib, peak_mib
from longarc.training.run_folder import RunFolder


def main(run: Path, documents: Path) -> int:
    """Load, answer, end."""
    # What a library prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**found: Any) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    import torch

    from longarc.training.prediction import predictor_of

    texts = json.loads(documents.read_text(encoding="utf-8"))
    predictor = predictor_of(RunFolder(run))
    answer(threads=torch.get_num_threads(), gpu_free_mib=gpu_free_mib())
    for line in sys.stdin:
        if line.strip() != "turn":
            continue
        started = time.perf_counter()
        predictor.logits(texts)
        seconds = time.perf_counter() - started
        answer(seconds=seconds, peak_mib=peak_mib(), gpu_peak_mib=gpu_peak_mib())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
