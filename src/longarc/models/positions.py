"""Let an encoder with a trained table of positions read longer documents than it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import torch
from torch import nn
from torch.nn import functional

from longarc.errors import ModelError, OptionError
from longarc.models.hierarchical_positions import HierarchicalPositions
from longarc.models.position_tables import PositionTable, configs_of, find_table
from longarc.models.record import note_change
from longarc.options import check_choice, check_number, check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Method = Literal["hierarchical", "copy", "interpolate"]
ALPHA, ORIGIN = 0.4, 2
"""Of a hierarchical stretch, where none is named; the reasons are in :func:`stretch_positions`."""

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def stretch_positions(
    model: AnyModel,
    max_length: int,
    *,
    alpha: float | None = None,
    method: Method = "hierarchical",
    origin: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> AnyModel:
    """Let ``model`` read documents of ``max_length`` tokens; changed in place, and returned.

    From n trained positions p_1 … p_n:

    - ``hierarchical``: q_{(i−1)n + j} = α u_i + (1 − α) u_j, u_i = (p_i − α p_1) / (1 − α), which
      is p_j + α/(1 − α) · (p_i − p_1): block i is the trained table, moved by one vector. With
      ``origin`` o that vector is α/(1 − α) · (p_{o+i−1} − p_o). No new parameter; the first n
      positions are unchanged to the bit; at most n (n − o + 1) positions, 262,144 from 512 with
      o = 1. Only the trained table is saved, so opening a checkpoint needs ``config.longarc``.
    - ``copy``: q_k = p_{((k−1) mod n) + 1}, the trained table over and over, as Longformer starts
      from. The first n are unchanged; positions n apart are the same until training parts them.
    - ``interpolate``: the trained table drawn out evenly, in between linearly. No position but the
      first keeps its vector.

    The last two write a larger table of parameters, so stretch before an optimiser is made. They
    are ordinary models, that plain transformers opens.

    The model has yet to be trained at the new length. The cost of attention grows with its square.

    Args:
        model: a transformers model, or a module around one, whose encoder is of a type in
            ``FAMILIES``; exactly one.
        max_length: tokens of a document, special ones included. Not below what the model reads
            now, except that a hierarchical stretch can be chosen anew, down to n.
        alpha: α in (0, 1), not 0.5: the coarse position's share. None for 0.4, the best of those
            that were tried; below 0.5, so that neighbours differ by more than blocks do.
            For ``hierarchical`` only.
        method: one of the three.
        origin: o ≥ 1, the trained position that blocks are measured from. 1 is the published form.
            None for 2: position 1 is always the special token's, whose vector is like no other
            (in MiniLM five times as long), and measured from it every later block is far from all
            that the model knows. For ``hierarchical`` only.
        tokenizer: gets ``model_max_length = max_length``.

    Also changed: the encoder's buffers ``position_ids`` and ``token_type_ids``, and
    ``max_position_embeddings`` (rows, with those for padding) in every config that describes the
    encoder. ``hierarchical`` is recorded as ``config.longarc["positions"]``, see
    ``restore_positions``.

    Raises:
        OptionError: a length, an α or a method that does not exist or does not fit the model; an α
            or an origin for a method that has none.
        ModelError: a model without such a table of positions; the message says what it has.

    In either case nothing has been changed.

    Source: Su Jianlin 2020, "Hierarchically decomposed positions, so that BERT can handle very
    long text" (in Chinese, https://kexue.fm/archives/7947); copying, Beltagy et al. 2020,
    "Longformer" (arXiv 2004.05150), section 5.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...                   intermediate_size=16, vocab_size=30, max_position_embeddings=16)
    >>> model = stretch_positions(BertModel(tiny), 100)
    >>> model(torch.ones(1, 100, dtype=torch.long)).last_hidden_state.shape
    torch.Size([1, 100, 8])
    >>> model.embeddings.position_embeddings.weight.shape
    torch.Size([16, 8])
    >>> stretch_positions(model, 257)
    Traceback (most recent call last):
    longarc.errors.OptionError: max_length is 257, but 16 trained positions give at most 16² = 256.
    """
    check_choice("method", method, get_args(Method))
    given = {"alpha": alpha, "origin": origin}
    alpha = _check_alpha(ALPHA if alpha is None else alpha)
    origin = check_whole("origin", ORIGIN if origin is None else origin, at_least=1)
    check_whole("max_length", max_length, at_least=1)
    if tokenizer is not None and not hasattr(tokenizer, "model_max_length"):
        raise OptionError(
            f"tokenizer must be a transformers tokenizer; found {type(tokenizer).__name__}."
        )
    found = find_table(model)
    _check_fit(found, max_length, alpha, method, origin)
    if method != "hierarchical" and (named := [n for n, v in given.items() if v is not None]):
        raise OptionError(
            f"{' and '.join(named)} would change nothing with method {method!r}, only with "
            f"'hierarchical'. Leave out {' and '.join(named)}."
        )

    if max_length > found.present or isinstance(found.table, HierarchicalPositions):
        table = _stretched(found, max_length, alpha, method, origin)
        record = None
        if method == "hierarchical":
            record = {
                "method": method, "alpha": alpha, "origin": origin, "trained": found.trained,
                "max_length": max_length,
            }  # fmt: skip
        _put(model, found, table, max_length, record)
    if tokenizer is not None:
        tokenizer.model_max_length = max_length
    return model


def restore_positions(model: AnyModel, record: Mapping[str, Any]) -> AnyModel:
    """Stretch a model as ``record`` says; changed in place, and returned.

    Args:
        model: with its trained table loaded.
        record: ``config.longarc["positions"]``: ``method`` (hierarchical), ``alpha``, ``origin``,
            ``trained`` (n) and ``max_length``.

    Raises:
        ModelError: a record that is incomplete, or not this model's.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...                   intermediate_size=16, vocab_size=30, max_position_embeddings=16)
    >>> record = stretch_positions(BertModel(tiny), 100).config.longarc["positions"]
    >>> record
    {'method': 'hierarchical', 'alpha': 0.4, 'origin': 2, 'trained': 16, 'max_length': 100}
    >>> tiny.max_position_embeddings = 16
    >>> restore_positions(BertModel(tiny), record).config.max_position_embeddings
    100
    """
    wanted = ("method", "alpha", "origin", "trained", "max_length")
    missing = [key for key in wanted if key not in record]
    if missing or record["method"] != "hierarchical":
        raise ModelError(
            f"the record of stretched positions is {dict(record)!r}; expected method "
            f"'hierarchical' and {', '.join(wanted[1:])}. The config.json was changed by hand, or "
            "written by another version of longarc."
        )
    found = find_table(model)
    if found.trained != record["trained"]:
        raise ModelError(
            f"the record of stretched positions is of {record['trained']} trained positions, but "
            f"the model has {found.trained}: it is another model's."
        )
    try:
        return stretch_positions(
            model, record["max_length"], alpha=record["alpha"], origin=record["origin"]
        )
    except OptionError as error:
        raise ModelError(f"the record of stretched positions does not fit: {error}") from error


def _check_alpha(alpha: float) -> float:
    alpha = check_number("alpha", alpha, below=1.0)
    if alpha == 0:
        raise OptionError("alpha must be above 0: with 0 every block has the same positions.")
    if alpha == 0.5:
        raise OptionError(
            "alpha must not be 0.5: the coarse and the fine index would weigh the same, so that "
            "position 2 of block 1 is position 1 of block 2. Use 0.4."
        )
    return alpha


def _check_fit(
    found: PositionTable, max_length: int, alpha: float, method: str, origin: int
) -> None:
    """Raise OptionError where the options do not go with the model as it is."""
    n, table = found.trained, found.table
    if isinstance(table, HierarchicalPositions):
        if method != "hierarchical":
            raise OptionError(
                f"the model's {n} trained positions are stretched hierarchically to "
                f"{found.present}. Open the model before that stretch to use method {method!r}."
            )
        if alpha != table.alpha:
            raise OptionError(
                f"the model is stretched with alpha={table.alpha:g}, and may have been trained so; "
                f"alpha={alpha:g} would change its positions. Pass alpha={table.alpha:g}."
            )
        if origin != table.origin:
            raise OptionError(
                f"the model is stretched with origin={table.origin}, and may have been trained so; "
                f"origin={origin} would change its positions. Pass origin={table.origin}."
            )
        if max_length < n:
            raise OptionError(
                f"max_length is {max_length}, but the model has {n} trained positions. Name a "
                "length from there on; a shorter document needs no change."
            )
    elif max_length < found.present:
        raise OptionError(
            f"max_length is {max_length}, but the model reads {found.present} tokens as it is. "
            "Name a greater length; a shorter document needs no change."
        )
    if method != "hierarchical":
        return
    if max_length > n**2:
        raise OptionError(
            f"max_length is {max_length}, but {n} trained positions give at most {n}² = {n**2}."
        )
    if max_length > n * (n - origin + 1):
        raise OptionError(
            f"max_length is {max_length}, but {n} trained positions measured from number {origin} "
            f"give at most {n} · {n - origin + 1} = {n * max(n - origin + 1, 0)}. Use origin=1."
        )


def _stretched(
    found: PositionTable, max_length: int, alpha: float, method: str, origin: int
) -> nn.Embedding:
    """A table for ``max_length`` positions."""
    old, offset, n = found.table, found.offset, found.trained
    if method == "hierarchical":
        return HierarchicalPositions(old, max_length, alpha=alpha, offset=offset, origin=origin)
    trained = old.weight.detach()
    if method == "copy":
        rows = trained[offset:][torch.arange(max_length, device=trained.device) % n]
    else:
        exact = trained[offset:].to(torch.promote_types(trained.dtype, torch.float32))
        rows = functional.interpolate(
            exact.T[None], size=max_length, mode="linear", align_corners=True
        )
        rows = rows[0].T.to(trained.dtype)
    rows = torch.cat([trained[:offset], rows])
    table = nn.Embedding(len(rows), rows.shape[1], old.padding_idx, _weight=rows)
    table.weight.requires_grad_(old.weight.requires_grad)
    return table.train(old.training)


def _put(
    model: nn.Module,
    found: PositionTable,
    table: nn.Embedding,
    max_length: int,
    record: dict[str, Any] | None,
) -> None:
    """Put the table in its place, and have everything follow that knows the number of its rows."""
    embeddings = cast(Any, found.encoder.embeddings)
    embeddings.position_embeddings = table
    rows = found.offset + max_length
    # Assigned to a buffer's name, a tensor is that buffer, persistent or not as it was.
    for name in ("position_ids", "token_type_ids"):
        old = getattr(embeddings, name, None)
        if old is not None:
            new = torch.arange(rows) if name == "position_ids" else torch.zeros(rows)
            setattr(embeddings, name, new[None].to(old))
    for config in configs_of(model, found.encoder):
        config.max_position_embeddings = rows
    if record is not None:
        note_change(found.encoder, "positions", record)
