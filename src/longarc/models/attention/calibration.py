"""Fit what kernels can learn to the model's own attention, on texts without labels."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from longarc.errors import DataError, ModelError
from longarc.models.attention.interface import attention_layers, set_attention
from longarc.models.attention.kernel import AttentionKernel
from longarc.models.attention.registry import EXACT
from longarc.models.attention.window import attend_all, zero_padding
from longarc.models.position_tables import find_table
from longarc.options import check_number, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HELD_OUT = 8  # texts, at most a quarter of all, that measure and do not train

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Calibration:
    """What calibrating did, measured on texts that it did not train on.

    Errors are those of a head's output, ‖estimate − exact‖² as a share of the exact output's
    variance, for inputs as the exact model has them.
    """

    layers: tuple[str, ...]
    """Qualified names of the attention modules."""
    before: tuple[tuple[float, ...], ...]
    """The error of each head of each layer."""
    after: tuple[tuple[float, ...], ...]
    """The same, calibrated; never more than before."""
    cosine_before: float
    """Mean cosine of the texts' mean-pooled last states to those of the exact model."""
    cosine_after: float
    """The same, calibrated."""
    texts: int
    """Texts measured on."""
    steps: int
    """Steps of the optimiser."""
    minutes: float
    """What it took, measuring included."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line a layer: the mean error over its heads, and the largest."""
        rows = [
            f"cosine to the exact model {self.cosine_before:.4f} → {self.cosine_after:.4f} "
            f"on {self.texts} texts ({self.steps} steps, {self.minutes:.1f} min)"
        ]
        width = max(map(len, self.layers))
        rows.append(f"{'layer':{width}}  error before (worst)  after (worst)")
        for name, before, after in zip(self.layers, self.before, self.after, strict=True):
            rows.append(
                f"{name:{width}}  {_mean(before):12.4f} ({max(before):.3f})"
                f"  {_mean(after):.4f} ({max(after):.3f})"
            )
        return "\n".join(rows)


def calibrate_attention(
    model: PreTrainedModel,
    texts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    minutes: float = 5.0,
    max_length: int = 512,
    batch_size: int = 2,
    learning_rate: float = 0.05,
    steps: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Calibration:
    """Fit a model's ``learned`` kernels to its exact attention; the weights stay as they are.

    The exact model reads the texts. At each layer the kernel is given the same queries and keys,
    and a step lowers the error of its heads' outputs. The layers do not wait for each other, and
    nothing is propagated back through the model: memory is that of inference.

    A part of the texts (a quarter, 8 at most) measures before and after. A head that did not get
    better keeps what it had.

    Args:
        model: an encoder, or a model around one. Where no attention was set, ``learned`` is.
        texts: unlabelled, of the kind and length that the model is for: 50 or more.
        tokenizer: the model's own by default, from where it was loaded.
        minutes: of training, on any machine; measuring comes on top.
        max_length: longer texts are cut, and those longer than the model reads anyway. The length
            that the model will be used at is best: what is right for clusters of 512 tokens is
            nearly, not quite, what is right for 2,048.
        batch_size: texts a step.
        learning_rate: of Adam at the start; falls to 0 over the time. High, since a head has only a
            few numbers to learn.
        steps: stop after so many even if there is time, so that the result can be repeated.
        seed: of the order of texts.
        progress: whether to show a bar; None where standard error is a terminal.

    Returns:
        The errors of each layer's heads and the cosine of the embeddings, before and after.

    Raises:
        DataError: fewer than two texts, or something that is no text.
        OptionError: a number out of range.
        ModelError: kernels that have nothing to learn.

    >>> report = calibrate_attention(model, texts, minutes=2)  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
    """
    minutes = check_number("minutes", minutes)
    learning_rate = check_number("learning_rate", learning_rate)
    check_whole("max_length", max_length, at_least=1)
    check_whole("batch_size", batch_size, at_least=1)
    if steps is not None:
        check_whole("steps", steps)
    if isinstance(texts, str):
        raise DataError("texts is one string: expected a list of texts.")
    texts = list(texts)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise DataError(f"texts has {wrong[0]!r} among them: expected strings.")
    if len(texts) < 2:
        raise DataError(
            f"Calibrating needs texts to fit and others to measure on: found {len(texts)}. "
            "Expected two at least; 50 or more are better."
        )
    if attention_layers(model):
        _learnable(model)
    if tokenizer is None:
        from longarc.models.loading import load_tokenizer

        source = model.name_or_path or model.base_model.name_or_path
        if not source:
            raise ModelError(
                "the model does not say where it was loaded from, so its tokenizer cannot be "
                "found. Pass tokenizer=…"
            )
        tokenizer = load_tokenizer(cast(str, source))
    with _as_it_was(model):
        if not attention_layers(model):
            set_attention(model, "learned", seed=seed)
        names, kernels = _learnable(model)
        order = random.Random(seed)
        order.shuffle(texts)
        many = min(_HELD_OUT, max(1, len(texts) // 4))
        encode = _encoder(tokenizer, min(max_length, _readable(model)), model.device)
        starts = range(0, many, batch_size)
        held_out = [encode(texts[i : min(i + batch_size, many)]) for i in starts]
        started = time.monotonic()
        before, exact = _measure(model, kernels, held_out)
        cosine_before = _cosine(model, held_out, exact)
        first = [[p.detach().clone() for p in kernel.parameters()] for kernel in kernels]
        done = _fit(
            model, kernels, texts[many:], encode, order,
            seconds=60 * minutes, steps=steps, batch_size=batch_size, rate=learning_rate,
            progress=sys.stderr.isatty() if progress is None else progress,
        )  # fmt: skip
        after, _ = _measure(model, kernels, held_out)
        for kernel, old, was, now in zip(kernels, first, before, after, strict=True):
            _keep_the_better(kernel, old, now <= was)
        after = [torch.minimum(was, now) for was, now in zip(before, after, strict=True)]
        cosine_after = _cosine(model, held_out, exact)
    return Calibration(
        layers=tuple(names),
        before=tuple(tuple(e.tolist()) for e in before),
        after=tuple(tuple(e.tolist()) for e in after),
        cosine_before=cosine_before,
        cosine_after=cosine_after,
        texts=many,
        steps=done,
        minutes=(time.monotonic() - started) / 60,
    )


def head_errors(estimate: Tensor, exact: Tensor, mask: Tensor | None) -> Tensor:
    """Each head's squared error as a share of the exact output's variance, (h,).

    Args:
        estimate, exact: (b, h, n, dv).
        mask: (b, n), true at the tokens that count.

    >>> x = torch.tensor([[[[1.0], [3.0]]]])
    >>> head_errors(x + 0.5, x, None)
    tensor([0.2500])
    """
    estimate, exact = estimate.float(), exact.float()
    error = (estimate - exact).square().sum(-1)
    if mask is None:
        away = exact - exact.mean(dim=(0, 2), keepdim=True)
        return error.sum(dim=(0, 2)) / away.square().sum(dim=(0, 2, 3)).clamp(min=1e-12)
    seen = mask[:, None, :].to(exact.dtype)
    mean = (exact * seen[..., None]).sum(dim=(0, 2), keepdim=True) / seen.sum().clamp(min=1)
    variance = ((exact - mean).square().sum(-1) * seen).sum(dim=(0, 2))
    return (error * seen).sum(dim=(0, 2)) / variance.clamp(min=1e-12)


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode; then modes and flags are put back, and after a failure all else too."""
    training = {module: module.training for module in model.modules()}
    found = [(p, p.requires_grad, p.detach().clone()) for p in _numbers(model)]
    new = not attention_layers(model)
    model.eval()
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, _, value in found:
                parameter.copy_(value)
        if new:
            set_attention(model, EXACT)
        raise
    finally:
        for parameter in _numbers(model):
            parameter.grad = None
        for parameter, flag, _ in found:
            parameter.requires_grad_(flag)
        for module, mode in training.items():
            module.training = mode


def _numbers(model: PreTrainedModel) -> list[nn.Parameter]:
    """All that kernels can learn."""
    return [p for _, module in attention_layers(model) for p in _kernel(module).parameters()]


def _kernel(module: nn.Module) -> AttentionKernel:
    return cast(AttentionKernel, module.attention_kernel)


def _readable(model: PreTrainedModel) -> int:
    """The tokens that a model has positions for."""
    try:
        return find_table(model).present
    except ModelError:  # no table of positions, so no end to it
        return sys.maxsize


def _fit(
    model: PreTrainedModel,
    kernels: Sequence[AttentionKernel],
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Batch],
    order: random.Random,
    *,
    seconds: float,
    steps: int | None,
    batch_size: int,
    rate: float,
    progress: bool,
) -> int:
    """Take steps until the time is up, and return how many."""
    learnt = [p.requires_grad_() for kernel in kernels for p in kernel.parameters()]
    optimizer = torch.optim.Adam(learnt, lr=rate)

    def learn(kernel: AttentionKernel, errors: Tensor) -> None:
        if errors.requires_grad:  # texts that fit into the window leave nothing to learn
            errors.sum().backward()

    done, start, batches = 0, time.monotonic(), _shuffled(texts, batch_size, order)
    columns = (
        TextColumn("calibrating attention"), BarColumn(bar_width=24), TimeRemainingColumn(),
    )  # fmt: skip
    with (
        Progress(*columns, transient=True, disable=not progress) as bar,
        _exact_attention(kernels, learn),
    ):
        task = bar.add_task("", total=1.0)
        while True:
            spent = (time.monotonic() - start) / seconds if seconds else 1.0
            # The rate follows the steps where they are given, so that a run can be repeated.
            planned = spent if steps is None else done / max(1, steps)
            bar.update(task, completed=min(max(spent, planned), 1.0))
            if spent >= 1 or (steps is not None and done >= steps):
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - planned)
            optimizer.zero_grad()
            _states(model, encode(next(batches)))
            optimizer.step()
            done += 1
    return done


def _measure(
    model: PreTrainedModel, kernels: Sequence[AttentionKernel], batches: Sequence[Batch]
) -> tuple[list[Tensor], list[Tensor]]:
    """Each kernel's mean errors, (h,), and the exact model's embeddings of each batch."""
    total = {id(kernel): torch.zeros(kernel.heads) for kernel in kernels}
    calls = dict.fromkeys(total, 0)

    def note(kernel: AttentionKernel, errors: Tensor) -> None:
        total[id(kernel)] += errors.detach().cpu()
        calls[id(kernel)] += 1

    with _exact_attention(kernels, note, gradients=False):
        exact = [_embeddings(model, batch) for batch in batches]
    return [total[key] / max(1, calls[key]) for key in total], exact


@contextmanager
def _exact_attention(
    kernels: Sequence[AttentionKernel],
    told: Callable[[AttentionKernel, Tensor], None],
    gradients: bool = True,
) -> Iterator[None]:
    """Let the model attend exactly, and tell of each kernel's errors on the way."""

    def watch(kernel: AttentionKernel) -> Callable[..., Tensor]:
        def forward(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            *,
            mask: Tensor | None = None,
            scale: float | None = None,
            **_: Any,
        ) -> Tensor:
            query, key, value = (x.detach() for x in zero_padding(mask, query, key, value))
            exact = attend_all(query, key, value, mask=mask, scale=scale)
            with torch.set_grad_enabled(gradients):
                estimate = type(kernel).forward(kernel, query, key, value, mask=mask, scale=scale)
                told(kernel, head_errors(estimate, exact, mask))
            return exact

        return forward

    for kernel in kernels:
        kernel.forward = watch(kernel)
    try:
        yield
    finally:
        for kernel in kernels:
            del kernel.forward  # the class's own comes back


def _keep_the_better(kernel: AttentionKernel, old: Sequence[Tensor], better: Tensor) -> None:
    """Put back the old rows of the heads that are not better."""
    with torch.no_grad():
        for parameter, before in zip(kernel.parameters(), old, strict=True):
            keep = better.to(parameter.device).view(-1, *[1] * (parameter.ndim - 1))
            parameter.copy_(torch.where(keep, parameter, before))


def _learnable(model: PreTrainedModel) -> tuple[list[str], list[AttentionKernel]]:
    found = [(name, _kernel(module)) for name, module in attention_layers(model)]
    learnable = [(name, kernel) for name, kernel in found if any(True for _ in kernel.parameters())]
    if not learnable:
        kinds = ", ".join(sorted({type(kernel).__name__ for _, kernel in found}))
        raise ModelError(
            f"the model's attention ({kinds}) has nothing to learn. Use the kernel that has: "
            "longarc.set_attention(model, 'learned')."
        )
    return [name for name, _ in learnable], [kernel for _, kernel in learnable]


def _encoder(
    tokenizer: PreTrainedTokenizerBase, max_length: int, device: torch.device
) -> Callable[[Sequence[str]], Batch]:
    def encode(texts: Sequence[str]) -> Batch:
        found = tokenizer(
            list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        )
        return {name: cast(Tensor, x).to(device) for name, x in found.items()}

    return encode


def _shuffled(texts: Sequence[str], batch_size: int, order: random.Random) -> Iterator[list[str]]:
    """Batches without end, in a new order each time round."""
    while True:
        shuffled = order.sample(list(texts), len(texts))
        for start in range(0, len(shuffled), batch_size):
            yield shuffled[start : start + batch_size]


def _states(model: PreTrainedModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        return cast(Any, model.base_model)(**batch).last_hidden_state


def _embeddings(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The mean of the last states over the tokens that count, (b, width)."""
    seen = batch["attention_mask"][..., None]
    return (_states(model, batch) * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)


def _cosine(model: PreTrainedModel, batches: Sequence[Batch], exact: Sequence[Tensor]) -> float:
    pairs = zip(batches, exact, strict=True)
    return float(torch.cat([cosine_similarity(_embeddings(model, b), e) for b, e in pairs]).mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
