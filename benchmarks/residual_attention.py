"""Time and memory of residual attention beside plain attention, the textbook and x-transformers.

    python benchmarks/residual_attention.py [--quick] [--systems sdpa blocked …] [--device cuda]

A step is the attention of all layers of an encoder, 12 heads, without anything between: the forward
pass, or that and the gradients of every layer's queries, keys and values. All systems see the same
ones, laid out as models have them, with the same padding (a tenth of the tokens, at the end). They
take turns; a row holds the spread of each one's milliseconds, and of their ratio to those of the
materialised form in the same turn.

    sdpa           every layer on its own, through PyTorch's fused kernel: no residual
    blocked        longarc on a CPU, which skips the padding
    concatenated   PyTorch's fused kernel on concatenated queries and keys, values padded with zeros
    materialised   the textbook: each layer's (n, n) scores added to the last layer's, mask, softmax
    x-transformers the core of its Attention, Attend with prev_attn, as residual_attn=True has it

Memory is what the process's resident peak grows by in a step, the inputs and the code being there:
outputs, gradients and all that lies between (Linux only); on a GPU, what the peak of its allocated
memory grows by. Sizes at which the materialised form would need more than --memory GiB are run
without it and x-transformers. ``concatenated`` is longarc on a GPU, ``blocked`` needs a CPU.

The peer: ``pip install x-transformers``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longarc.models.attention.residual import concatenate, wide_attention
from longarc.models.attention.residual_blocked import blocked_attention
from rows import append_row, peak_growth, peak_growth_of_gpu, spread

HEADS = 12
LENGTHS = (512, 1024, 2048, 4096, 8192)
Layers = list[list[Tensor]]  # queries, keys, values: one a layer
System = Callable[[Layers, Tensor], list[Tensor]]


def main() -> None:
    """Measure every system at every size, and append one row for each size and direction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small grid")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--widths", nargs="+", type=int, default=(32, 64))
    parser.add_argument("--layers", nargs="+", type=int, default=(6, 12))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=float, default=16.0, help="GiB that may be used")
    parser.add_argument("--dry", action="store_true", help="print and append nothing")
    parser.add_argument("--peak", nargs=5, metavar=("SYSTEM", "N", "D", "LAYERS", "BACKWARD"))
    chosen = parser.parse_args()
    torch.set_default_device(chosen.device)
    if chosen.device == "cuda":
        chosen.systems = [name for name in chosen.systems if name != "blocked"]
    if chosen.peak:
        name, n, d, layers, backward = chosen.peak
        print(json.dumps(peak(name, int(n), int(d), int(layers), backward == "True")))
        return
    if chosen.quick:
        chosen.lengths, chosen.widths, chosen.layers = (512, 1024), (32,), (6,)
        chosen.repeats = min(chosen.repeats, 3)
    for layers in chosen.layers:
        for d in chosen.widths:
            for n in chosen.lengths:
                # Scores and weights of every layer, and a few at work.
                fits = 4 * HEADS * n**2 * (2 * layers + 4) < chosen.memory * 2**30
                names = [name for name in chosen.systems if fits or name not in QUADRATIC]
                for backward in (False, True):
                    report(names, n, d, layers, backward, chosen.repeats, chosen.dry)


def report(
    names: list[str], n: int, d: int, layers: int, backward: bool, repeats: int, dry: bool
) -> None:
    """Measure one size in one direction."""
    seconds = measure(names, n, d, layers, backward, repeats)
    figures: dict[str, Any] = {}
    for name, found in seconds.items():
        figures[name] = {
            "milliseconds": spread([1e3 * a for a in found]),
            "peak_mib": peak_elsewhere(name, n, d, layers, backward),
        }
        if textbook := seconds.get("materialised"):
            ratios = [a / b for a, b in zip(found, textbook, strict=True)]
            figures[name]["over_materialised"] = spread(ratios)
    print(f"n={n} d={d} layers={layers} {'forward and backward' if backward else 'forward'}")
    for name, row in figures.items():
        ratio = row.get("over_materialised", {}).get("median", float("nan"))
        print(
            f"  {name:16s} {row['milliseconds']['median']:10.1f} ms"
            f" {ratio:7.3f} of materialised {row['peak_mib']:9.1f} MiB",
            flush=True,
        )
    if not dry:
        sizes = {"n": n, "width": d, "layers": layers, "heads": HEADS, "batch": 1}
        threads = torch.get_num_threads()
        append_row(
            "residual-attention", **sizes, device=_device(), threads=threads, backward=backward,
            systems=figures,
        )  # fmt: skip


def measure(
    names: list[str], n: int, d: int, layers: int, backward: bool, repeats: int
) -> dict[str, list[float]]:
    """Return each system's seconds, one for each turn, after a turn to warm up."""
    inputs, mask = make_inputs(n, d, layers)
    calls = {name: step(SYSTEMS[name], inputs, mask, backward) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if _device() == "cuda":
                torch.cuda.synchronize()
            if turn:
                found[name].append(time.perf_counter() - start)
    return found


def make_inputs(n: int, d: int, layers: int) -> tuple[Layers, Tensor]:
    """Queries, keys and values of all layers as views of (b, n, h, d), and a mask."""
    generator = torch.Generator(_device()).manual_seed(0)
    shape = (1, n, HEADS, d)
    kinds = [
        [torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(layers)]
        for _ in range(3)
    ]
    return kinds, torch.arange(n)[None] < n - n // 10


def step(system: System, inputs: Layers, mask: Tensor, backward: bool) -> Callable[[], object]:
    """One step, with the gradients of all queries, keys and values or without."""
    if not backward:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return system(inputs, mask)

        return forward
    kinds = [[x.detach().clone(memory_format=torch.preserve_format) for x in k] for k in inputs]
    leaves = [x.requires_grad_() for kind in kinds for x in kind]
    # Nothing flows back from padding.
    pull = [mask[:, None, :, None] * torch.ones_like(x) for x in kinds[2]]
    return lambda: torch.autograd.grad(system(kinds, mask), leaves, pull)


def sdpa(inputs: Layers, mask: Tensor) -> list[Tensor]:
    seen = mask[:, None, None]
    return [
        scaled_dot_product_attention(q, k, v, attn_mask=seen)
        for q, k, v in zip(*inputs, strict=True)
    ]


def blocked(inputs: Layers, mask: Tensor) -> list[Tensor]:
    queries, keys, values = inputs
    scale = queries[0].shape[-1] ** -0.5
    return [
        blocked_attention(queries[: i + 1], keys[: i + 1], value, mask=mask, scale=scale)
        for i, value in enumerate(values)
    ]


def concatenated(inputs: Layers, mask: Tensor) -> list[Tensor]:
    queries, keys, values = inputs
    scale = queries[0].shape[-1] ** -0.5
    return [
        wide_attention(*concatenate(queries[: i + 1], keys[: i + 1]), value, mask=mask, scale=scale)
        for i, value in enumerate(values)
    ]


def materialised(inputs: Layers, mask: Tensor) -> list[Tensor]:
    hidden, scores, outs = ~mask[:, None, None], None, []
    for query, key, value in zip(*inputs, strict=True):
        own = query @ key.mT * query.shape[-1] ** -0.5
        scores = own if scores is None else own + scores
        outs.append(scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ value)
    return outs


def x_transformers(inputs: Layers, mask: Tensor) -> list[Tensor]:
    try:
        from x_transformers.attend import Attend
    except ImportError as error:
        raise SystemExit(
            f"The peer is missing ({error}). Install it: pip install x-transformers. Or leave it "
            "out with --systems."
        ) from error
    attend, carried, outs = Attend(), None, []
    for query, key, value in zip(*inputs, strict=True):
        out, between = attend(query, key, value, mask=mask, prev_attn=carried)
        carried = between.pre_softmax_attn
        outs.append(out)
    return outs


SYSTEMS: dict[str, System] = {
    "sdpa": sdpa,
    "blocked": blocked,
    "concatenated": concatenated,
    "materialised": materialised,
    "x-transformers": x_transformers,
}
QUADRATIC = ("materialised", "x-transformers")


def peak_elsewhere(name: str, n: int, d: int, layers: int, backward: bool) -> float:
    """Return the MiB that ``peak`` finds, on a CPU in a process of its own."""
    if _device() == "cuda":
        return peak(name, n, d, layers, backward)
    sizes = [name, str(n), str(d), str(layers), str(backward)]
    command = [sys.executable, __file__, "--peak", *sizes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak(name: str, n: int, d: int, layers: int, backward: bool) -> float:
    """Return by how many MiB the process's peak grows in a step, its code having been loaded."""
    step(SYSTEMS[name], *make_inputs(64, d, layers), backward)()
    measured = peak_growth if _device() == "cpu" else peak_growth_of_gpu
    return measured(step(SYSTEMS[name], *make_inputs(n, d, layers), backward))


def _device() -> str:
    return torch.get_default_device().type


if __name__ == "__main__":
    main()
