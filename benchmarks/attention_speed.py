"""Time and memory of the attention kernels beside PyTorch's fused one and performer-pytorch.

    python benchmarks/attention_speed.py [--quick] [--kernels performer local-clustered …]

For every length and width of a head, all systems see the same queries, keys, values and padding (a
tenth of the tokens), laid out as models have them. They take turns; a row holds the spread of each
system's milliseconds, and of their ratio to SDPA's in the same turn. ``floor`` is the four bare
products φ(k) = kΩ, φ(k)ᵀv, qΩ and φ(q)(φ(k)ᵀv) of m features without exponentials, whole or in
blocks of 256 tokens, whichever is faster; with gradients, three times that. Memory is what the
process's resident peak grows by in a call, the inputs and the code being there: outputs, gradients
and all that lies between. Linux only.

The peer: ``pip install performer-pytorch``.
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

from longarc.models.attention.registry import ATTENTIONS, build_kernel
from rows import append_row, peak_growth, spread

HEADS = 12
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
FEATURES = (64, 128, 256)
System = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Measure every system at every size, and append one row for each size and direction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small grid")
    parser.add_argument("--kernels", nargs="+", default=["performer", "linear"], choices=ATTENTIONS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--widths", nargs="+", type=int, default=(32, 64))
    parser.add_argument("--features", nargs="+", type=int, default=FEATURES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", nargs="*", type=int, default=LENGTHS, help="lengths for peaks")
    parser.add_argument("--dry", action="store_true", help="print and append nothing")
    parser.add_argument("--peak", nargs=4, metavar=("SYSTEM", "N", "D", "BACKWARD"))
    chosen = parser.parse_args()
    if chosen.peak:
        name, n, d, backward = chosen.peak
        print(json.dumps(peak(name, int(n), int(d), backward == "True")))
        return
    if chosen.quick:
        chosen.lengths, chosen.widths, chosen.features = (512, 2048), (32,), (64,)
        chosen.repeats = min(chosen.repeats, 5)
    names = ["sdpa"]
    for m in chosen.features:
        names += [f"performer-pytorch:{m}", f"floor:{m}"]
    for kernel in chosen.kernels:
        many = chosen.features if kernel == "performer" else ("",)
        names += [f"{kernel}:{m}".rstrip(":") for m in many]
    for d in chosen.widths:
        for n in chosen.lengths:
            for backward in (False, True):
                seconds = measure(names, n, d, backward, chosen.repeats)
                figures: dict[str, Any] = {
                    name: {
                        "milliseconds": spread([1e3 * a for a in found]),
                        "over_sdpa": spread(
                            [a / b for a, b in zip(found, seconds["sdpa"], strict=True)]
                        ),
                        "peak_mib": peak_elsewhere(name, n, d, backward)
                        if n in chosen.memory
                        else None,
                    }
                    for name, found in seconds.items()
                }
                print(f"n={n} d={d} {'forward and backward' if backward else 'forward'}")
                for name, row in figures.items():
                    peaked = "" if row["peak_mib"] is None else f" {row['peak_mib']:8.1f} MiB"
                    print(
                        f"  {name:24s} {row['milliseconds']['median']:9.2f} ms"
                        f" {row['over_sdpa']['median']:7.3f} of SDPA{peaked}"
                    )
                if not chosen.dry:
                    sizes = {"n": n, "width": d, "heads": HEADS, "batch": 1}
                    sizes["threads"] = torch.get_num_threads()
                    append_row("attention-speed", **sizes, backward=backward, systems=figures)


def measure(
    names: list[str], n: int, d: int, backward: bool, repeats: int
) -> dict[str, list[float]]:
    """Return each system's seconds, one for each turn, after a turn to warm up."""
    *tensors, mask = make_inputs(n, d)
    calls = {name: step(build(name, d), tensors, mask, backward) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times = 3 if backward and name.startswith("floor") else 1
                found[name].append(times * (time.perf_counter() - start))
    return found


def make_inputs(n: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values as views of (b, n, h, d), and a mask with a tenth of padding."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, n, HEADS, d)
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for _ in range(3))
    return q, k, v, torch.arange(n)[None] < n - n // 10


def step(
    system: System, tensors: list[Tensor], mask: Tensor, backward: bool
) -> Callable[[], object]:
    """One call, with the gradients of queries, keys and values or without."""
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return system(*tensors, mask)

        return forward
    leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in tensors]
    pull = torch.ones_like(tensors[2])

    def both() -> object:
        out = system(*leaves, mask)
        return torch.autograd.grad(out, leaves, pull) if out.requires_grad else out

    return both


def build(name: str, d: int) -> System:
    """A system by name: sdpa, floor:m, performer-pytorch:m, or a kernel with its features."""
    kind, _, features = name.partition(":")
    if kind == "sdpa":
        return lambda q, k, v, mask: scaled_dot_product_attention(
            q, k, v, attn_mask=mask[:, None, None]
        )
    if kind == "floor":
        return floor(int(features), d)
    if kind == "performer-pytorch":
        try:
            from performer_pytorch import FastAttention
        except ImportError as error:
            raise SystemExit(
                f"The peer is missing ({error}). Install it: pip install performer-pytorch"
            ) from error
        peer = FastAttention(d, nb_features=int(features))
        # Its own way with padding, which leaves padded keys in the denominator.
        return lambda q, k, v, mask: peer(q, k, v.masked_fill(~mask[:, None, :, None], 0))
    options = {"num_features": int(features)} if features else {}
    kernel = build_kernel(kind, heads=HEADS, width=d, options=options)
    return lambda q, k, v, mask: kernel(q, k, v, mask=mask)


def floor(m: int, d: int) -> System:
    """The four bare products, whole at first and in blocks, and then by the faster way."""
    omega = torch.randn(HEADS, d, m)
    work = torch.empty(HEADS, 256, m)
    timings: dict[bool, float] = {}

    def products(q: Tensor, k: Tensor, v: Tensor, blocked: bool) -> Tensor:
        if not blocked:
            summed = torch.bmm(torch.bmm(k, omega).mT, v)
            return torch.bmm(torch.bmm(q, omega), summed)
        summed, out = torch.zeros(HEADS, m, d), torch.empty_like(q)
        for start in range(0, k.shape[1], 256):
            part = k[:, start : start + 256]
            phi = torch.bmm(part, omega, out=work[:, : part.shape[1]])
            summed.baddbmm_(phi.mT, v[:, start : start + 256])
        for start in range(0, q.shape[1], 256):
            part = q[:, start : start + 256]
            phi = torch.bmm(part, omega, out=work[:, : part.shape[1]])
            out[:, start : start + 256] = torch.bmm(phi, summed)
        return out

    rows: list[Tensor] = []

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            if not rows:
                rows.extend(x.detach()[0].contiguous() for x in (q, k, v))
                for blocked in (False, True, False, True):
                    start = time.perf_counter()
                    products(*rows, blocked)
                    timings[blocked] = time.perf_counter() - start
            return products(*rows, timings[True] < timings[False])

    return call


def peak_elsewhere(name: str, n: int, d: int, backward: bool) -> float:
    """Return the MiB that ``peak`` finds in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, str(n), str(d), str(backward)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak(name: str, n: int, d: int, backward: bool) -> float:
    """Return by how many MiB the process's peak grows in a call, its code having been loaded."""
    system = build(name, d)
    *small, mask = make_inputs(64, d)
    step(system, small, mask, backward)()
    *tensors, mask = make_inputs(n, d)
    call = step(build(name, d), tensors, mask, backward)
    return peak_growth(call)


if __name__ == "__main__":
    main()
