"""How much is missing from the sum at finite steps, for every kind of update."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from longarc.studies.kernel_machine.trainings import Network, Points, items, train
from longarc.studies.kernel_machine.walks import digits_of

UPDATES: dict[str, dict[str, Any]] = {
    "gradient descent": {"learning_rate": 0.2},
    "momentum": {"learning_rate": 0.05, "optim_args": "momentum=0.9,nesterov=True"},
    "AdamW, clipped, with dropout, decay and warm-up": {
        "optim": "adamw_torch", "learning_rate": 0.01, "lr_scheduler_type": "linear",
        "warmup_steps": 5, "weight_decay": 0.1, "max_grad_norm": 0.5,
    },
}  # fmt: skip


def residuals(
    steps: int, images: int, queries: int, advance: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """The largest |f_T − its parts| of any logit, over the largest |f_T − f_0|, by update."""
    digits = digits_of(1, images, queries)
    found = {}
    for name, options in UPDATES.items():
        dropout = 0.1 if "dropout" in name else 0.0
        with tempfile.TemporaryDirectory() as folder:
            machine = train(
                Path(folder),
                Network((64, 16, 10), 0, dropout),
                Points(digits.x[0], digits.y[0]),
                tolerance=1e-11,
                max_steps=steps,
                **({"per_device_train_batch_size": max(images // 4, 1)} | options),
            )
            asked = items(digits.test_x[0])
            terms = machine.terms(asked)
            missing = np.abs(machine.predict(asked) - terms.final).max()
        found[name] = float(missing / np.abs(terms.final - terms.initial).max())
        advance()
    return found
