"""Masked tokens of licence texts: MiniLM learns to restore them, at any length.

The packaged MiniLM has no head for masked tokens, and being a sentence encoder does without. It
gets BERT's head, whose last layer is the table of words, and learns the task again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertForMaskedLM

from longarc.data.licenses import read_licenses
from longarc.errors import DataError
from longarc.models.loading import load_tokenizer, resolve_model
from longarc.training.prediction import bfloat16_is_fast

SHARE = 0.15  # of the tokens, masked; BERT's
BLOCKS = 3  # of trained positions in a long text: 1,536 of 512, as published
RATE = 1e-4  # the encoder's largest learning rate: with 5e-4 it never gets past word frequencies
HEAD_RATE = 1e-3  # the new head's


@dataclass(frozen=True)
class MaskedTexts:
    """Texts with some tokens masked, each as one long document, and in windows.

    Without the tokens at both ends: ``tokens`` and ``masked`` are (texts, BLOCKS, n − 2), n the
    trained positions; ``masked`` says which are to be restored. ``special`` are the ids of [CLS],
    [SEP] and [MASK].
    """

    tokens: Tensor
    masked: Tensor
    special: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, places: slice) -> MaskedTexts:
        return MaskedTexts(self.tokens[places], self.masked[places], self.special)

    def windows(self) -> MaskedTexts:
        """Each block as a text of its own: the same tokens, masked alike, at trained positions."""
        return MaskedTexts(
            self.tokens.flatten(0, 1)[:, None], self.masked.flatten(0, 1)[:, None], self.special
        )

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Ids (texts, m), with [CLS], [SEP] and [MASK]; and which are masked."""
        first, last, mask = self.special
        ids = self.tokens.masked_fill(self.masked, mask).flatten(1)
        ids = functional.pad(functional.pad(ids, (1, 0), value=first), (0, 1), value=last)
        return ids, functional.pad(self.masked.flatten(1), (1, 1), value=False)


def masked_texts(n: int, count: int, seed: int = 0) -> MaskedTexts:
    """Return ``count`` licence texts of at least BLOCKS (n − 2) tokens, in random order, cut there.

    Raises:
        DataError: there are fewer, or the package with the texts is not installed.
    """
    tokenizer = load_tokenizer("minilm")
    length = BLOCKS * (n - 2)
    texts = read_licenses("category", include_rules=False).texts
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = []
    for place in torch.randperm(len(texts), generator=generator).tolist():
        if len(rows) == count:
            break
        if len(texts[place]) > 2 * length:  # a token is rarely shorter than two letters
            found: Any = tokenizer(
                texts[place], add_special_tokens=False, truncation=True, max_length=length
            )
            if len(found["input_ids"]) == length:
                rows.append(found["input_ids"])
    if len(rows) < count:
        raise DataError(f"only {len(rows)} licence texts have {length} tokens; expected {count}.")
    tokens = torch.tensor(rows).view(count, BLOCKS, n - 2)
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id)
    return MaskedTexts(tokens, _draw(tokens, generator), cast(tuple[int, int, int], special))


def minilm_for_masked_tokens(n: int, seed: int = 0) -> BertForMaskedLM:
    """MiniLM with a new head for masked tokens, and the first n of its 512 positions.

    The table of words, which is the head's last layer too, is not trained: it is half of the
    weights, and a thousand documents say little about most words.
    """
    encoder = AutoModel.from_pretrained(resolve_model("minilm"), dtype=torch.float32)
    weights = {k: v for k, v in encoder.state_dict().items() if not k.startswith("pooler.")}
    name = "embeddings.position_embeddings.weight"
    weights[name] = weights[name][:n]
    config = cast(BertConfig, copy.deepcopy(encoder.config))
    config.max_position_embeddings = n
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
    network = cast(Any, model)
    network.bert.load_state_dict(weights)
    network.tie_weights()
    network.get_input_embeddings().weight.requires_grad_(False)
    return model.eval()


def learn(model: BertForMaskedLM, texts: MaskedTexts, *, seed: int = 0) -> None:
    """One pass over ``texts`` in order, masked anew; AdamW, 10 % warm-up, then linear.

    A step has the tokens of one long text: so many windows, or one text.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = MaskedTexts(texts.tokens, _draw(texts.tokens, generator), texts.special)
    network = cast(Any, model)
    groups = [
        {"params": [w for w in part.parameters() if w.requires_grad], "lr": rate}
        for part, rate in ((network.bert, RATE), (network.cls, HEAD_RATE))
    ]
    weights = [weight for group in groups for weight in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    batch = BLOCKS // texts.tokens.shape[1]
    steps = -(-len(texts) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / steps, 1.0)
    )
    with torch.random.fork_rng(devices=[]):  # dropout's
        torch.manual_seed(seed)
        model.train()
        for start in range(0, len(texts), batch):
            logits, truth = _restore(model, texts[start : start + batch])
            functional.cross_entropy(logits, truth).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()


@torch.inference_mode()
def accuracy(model: BertForMaskedLM, texts: MaskedTexts) -> Tensor:
    """Share of the masked tokens that the model restores, in each block: (texts, blocks)."""
    right = torch.zeros(texts.masked.shape)
    for i in range(len(texts)):
        logits, truth = _restore(model, texts[i : i + 1])
        right[i][texts.masked[i]] = (logits.argmax(1) == truth).float()
    return right.sum(2) / texts.masked.sum(2)


def _restore(model: BertForMaskedLM, texts: MaskedTexts) -> tuple[Tensor, Tensor]:
    """Logits (k, V) for the k masked tokens, and what they are (k,)."""
    ids, masked = texts.inputs()
    network = cast(Any, model)
    device = next(model.parameters()).device
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast(device)):
        states = network.bert(input_ids=ids).last_hidden_state
        logits = network.cls(states[masked])  # the table of words only where it is asked for
    return logits.float(), texts.tokens[texts.masked]


def _draw(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Which tokens are masked: the same number in every block, at random places."""
    number = max(1, round(SHARE * tokens.shape[-1]))
    order = torch.rand(tokens.shape, generator=generator).argsort(-1)
    return order < number
