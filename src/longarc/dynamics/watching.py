"""Hooks that keep the tensors of one forward pass by which the gradient is to be looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from longarc.dynamics.recurrent_cells import is_recurrent
from longarc.dynamics.sublayers import Branch, branches


@dataclass
class Entry:
    """The stream (b, n, d) as it came to a branch, and the copy that went into it alone."""

    branch: Branch
    stream: Tensor
    copy: Tensor | None


@dataclass
class RecurrentCall:
    """A call of a recurrent module: what came in, what went out."""

    name: str
    module: nn.Module
    inputs: Any
    initial: Any
    output: Any = None
    finals: tuple[Tensor, ...] = ()

    @property
    def batch_first(self) -> bool:
        """Whether its tensors lead with the batch."""
        return bool(getattr(self.module, "batch_first", True))

    def padded(self, values: Any) -> tuple[Tensor, Tensor | None]:
        """A sequence as a tensor (b, n, d), and its mask (b, n) if it was packed."""
        if isinstance(values, PackedSequence):
            found, lengths = pad_packed_sequence(values, batch_first=True)
            assert isinstance(found, Tensor)
            places = torch.arange(found.shape[1], device=found.device)
            return found, places < lengths.to(found.device)[:, None]
        if values.ndim == 2:  # without a batch
            return values[None], None
        return (values if self.batch_first else values.transpose(0, 1)), None

    @property
    def data(self) -> Tensor:
        """The tensor of ``output`` by which the loss can be differentiated."""
        output: Any = self.output
        return output.data if isinstance(output, PackedSequence) else output

    def error(self, gradient: Tensor | None) -> Tensor:
        """The gradient by ``output``, (b, n, directions · H)."""
        found: Any = torch.zeros_like(self.data) if gradient is None else gradient
        if isinstance(self.output, PackedSequence):
            found = self.output._replace(data=found)
        return self.padded(found)[0]


@dataclass
class Watch:
    """Keeps, while it is entered, what a forward pass of ``model`` hands from part to part.

    ``vectors`` are the token vectors (b, n, d) of the first call of the embedding table,
    ``entries`` the stream at every branch in the order of the calls, ``last`` the stream after the
    last layer.
    """

    model: nn.Module
    vectors: Tensor | None = None
    entries: list[Entry] = field(default_factory=list)
    last: Tensor | None = None
    calls: list[RecurrentCall] = field(default_factory=list)

    def __enter__(self) -> Watch:
        self._hooks = []
        table = _table(self.model)
        if table is not None:
            self._hooks.append(table.register_forward_hook(self._embedded))
        for layer, parts in branches(self.model):
            for branch in parts:
                self._hooks.append(
                    branch.entry.register_forward_pre_hook(
                        lambda module, args, kwargs, branch=branch: self._entered(
                            branch, args, kwargs
                        ),
                        with_kwargs=True,
                    )
                )
            self._hooks.append(layer.register_forward_hook(self._left))
        for name, module in self.model.named_modules():
            if is_recurrent(module):
                self._hooks.append(
                    module.register_forward_pre_hook(
                        lambda module, args, kwargs, name=name: self._called(
                            name, module, args, kwargs
                        ),
                        with_kwargs=True,
                    )
                )
                self._hooks.append(module.register_forward_hook(self._returned))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _embedded(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if self.vectors is not None or not isinstance(output, Tensor) or output.ndim != 3:
            return None
        # A frozen table has no gradient; its vectors can still have one.
        self.vectors = output if output.requires_grad else output.detach().requires_grad_()
        return self.vectors

    def _entered(self, branch: Branch, args: Any, kwargs: Any) -> Any:
        place = next((i for i, value in enumerate(args) if _is_stream(value)), None)
        name = next((k for k, value in kwargs.items() if _is_stream(value)), None)
        if place is None and name is None:
            return None
        stream = args[place] if place is not None else kwargs[name]
        if not stream.requires_grad:
            stream = stream.detach().requires_grad_()
        copy = stream.view_as(stream) if branch.splits else None
        self.entries.append(Entry(branch, stream, copy))
        given = stream if copy is None else copy
        if place is not None:
            return (*args[:place], given, *args[place + 1 :]), kwargs
        return args, {**kwargs, name: given}

    def _left(self, _module: nn.Module, _args: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if _is_stream(value):
            self.last = value

    def _called(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = {**dict(zip(("input", "hx"), args, strict=False)), **kwargs}
        if not given:
            return
        inputs = given.get("input", next(iter(given.values())))
        self.calls.append(RecurrentCall(name, module, inputs, given.get("hx")))

    def _returned(self, module: nn.Module, _args: Any, output: Any) -> None:
        call = next((c for c in reversed(self.calls) if c.module is module), None)
        if call is None:
            return
        out, finals = output if isinstance(output, tuple) and len(output) == 2 else (output, ())
        call.output = out
        call.finals = (finals,) if isinstance(finals, Tensor) else tuple(finals)


def _table(model: nn.Module) -> nn.Module | None:
    """The module that turns tokens into vectors."""
    try:
        found = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError):
        found = None
    if isinstance(found, nn.Module):
        return found
    return next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)


def _is_stream(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()
