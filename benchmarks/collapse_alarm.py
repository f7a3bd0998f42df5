"""Whether longarc pretrain's alarm tells runs that collapse from those that do not.

    python benchmarks/collapse_alarm.py [--seeds 0 1 2 3 4]

MiniLM's first layers are trained on licence texts under each objective, and under SimSiam without
its stop-gradient, all with the same options and step sizes that are large enough for a collapse to
come within the run. No run is stopped. How a run ended is told by the codes of the held-out
documents, without the detector: collapsed if their spread (√d times their standard deviation) or
their effective rank less 1 is below a tenth of what it was at the start, healthy if both are above
a half of it. Prints each run, and appends a row of all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import longarc
from longarc.data.licenses import read_licenses
from longarc.models.loading import load_encoder, load_tokenizer
from rows import append_row, spread

KINDS: dict[str, dict[str, Any]] = {
    "simcse": {"objective": "simcse"},
    "byol": {"objective": "byol"},
    "simsiam": {"objective": "simsiam"},
    "simsiam, no stop-gradient": {"objective": "simsiam", "stop_gradient": False},
}
COLLAPSED, HEALTHY = 0.1, 0.5
"""What is left of the start."""


def main() -> None:
    """Train all and append a row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--options", type=json.loads, default={}, help="as JSON")
    chosen = parser.parse_args()
    options = {
        "max_length": 32, "batch_size": 16, "epochs": 2, "learning_rate": 1e-3,
        "head_learning_rate": 1e-2, "held_out": 64, "evaluations": 1, **chosen.options,
    }  # fmt: skip
    texts = [text[:2000] for text in read_licenses("category", limit=chosen.documents).texts]
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        encoder: Any = load_encoder("minilm")
        encoder.encoder.layer = encoder.encoder.layer[: chosen.layers]
        encoder.config.num_hidden_layers = chosen.layers
        encoder.save_pretrained(model)
        load_tokenizer("minilm").save_pretrained(model)
        for kind in chosen.kinds:
            for seed in chosen.seeds:
                run = longarc.pretrain(
                    {"text": texts}, text="text", model=str(model), seed=seed,
                    out=Path(temporary) / f"{kind} {seed}", stop_on_collapse=False, verbose=False,
                    **KINDS[kind], **options,
                )  # fmt: skip
                runs.append(measured(kind, seed, run))
                print(json.dumps(runs[-1], ensure_ascii=False), flush=True)
    ends = {
        "collapsed": [run for run in runs if run["left"] < COLLAPSED],
        "healthy": [run for run in runs if run["left"] > HEALTHY],
    }
    late = [run["alarm"] - run["onset"] for run in ends["collapsed"] if run["alarm"] is not None]
    append_row(
        "collapse-alarm", layers=chosen.layers, documents=chosen.documents, options=options,
        seeds=chosen.seeds, kinds={kind: [r for r in runs if r["kind"] == kind]
                                   for kind in chosen.kinds},
        **{name: {"runs": len(found), "alarms": sum(r["alarm"] is not None for r in found)}
           for name, found in ends.items()},
        between=len(runs) - sum(map(len, ends.values())), steps_late=spread(late) if late else None,
    )  # fmt: skip


def measured(kind: str, seed: int, run: longarc.Pretraining) -> dict[str, Any]:
    """How the run ended, when it fell below half of its best for good, and the alarm's step."""
    lines = (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    looks = [r for r in map(json.loads, lines) if r["event"] == "collapse"]
    values = {
        "spread": [look["relative_std"] for look in looks],
        "rank": [look["effective_rank"] - 1 for look in looks],
    }
    onsets = []
    for series in values.values():
        apart = [i for i, value in enumerate(series) if value >= 0.5 * max(series)]
        if apart[-1] + 1 < len(series):
            onsets.append(looks[apart[-1] + 1]["step"])
    left = min(series[-1] / series[0] for series in values.values())
    alarm = run.metrics["collapse"]
    found: dict[str, Any] = {"kind": kind, "seed": seed, "steps": run.metrics["steps"]}
    found["left"] = round(left, 4)
    found |= {name: round(series[-1], 4) for name, series in values.items()}
    found |= {
        f"{name}, lowest": round(min(s) / max(s), 4) for name, s in values.items()
    }  # fmt: skip
    return found | {"onset": min(onsets, default=None), "alarm": alarm and alarm["step"]}


if __name__ == "__main__":
    main()
