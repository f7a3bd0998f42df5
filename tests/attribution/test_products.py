"""Products with examples' gradients are those of each example's gradient alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call
from transformers import BertModel

import longarc
from longarc.attribution.counterfactual import effects
from longarc.attribution.products import by_layers, by_passes
from longarc.attribution.query import Query, measure
from longarc.attribution.query_gradients import QueryGradients
from longarc.attribution.sweep import explain
from longarc.errors import ModelError
from longarc.models.mean_pooled import from_encoder
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.recording.replay import logits_of


def gated(model):
    return longarc.set_residual_attention(model, gate=True)


def learned(model):
    return longarc.set_attention(model, "learned", window=4, num_selected=1, num_clusters=2)


def linear(model):
    return longarc.set_attention(model, "linear")


def performer(model):
    return longarc.set_attention(model, "performer", num_features=8)


@pytest.fixture
def make(tiny):
    """A tiny BERT in double precision, changed in some way, and a batch of its texts."""

    def made(change, dropout=0.0):
        torch.manual_seed(0)
        encoder = BertModel(tiny.make_config(dropout))
        model = change(from_encoder(encoder, num_labels=3, classifier_dropout=0.0)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        tokenizer = tiny.make_tokenizer()
        data = Documents(tiny.make_table(3)[0], tokenizer, 48)
        return model, PaddedBatches(tokenizer)([*data])

    return made


def one_by_one(model, batch, directions, alpha):
    """⟨U_q, g_i⟩ by autograd, from a pass of each example."""
    rows = []
    named = dict(model.named_parameters())
    for i in range(len(alpha)):
        alone = {k: v[i : i + 1] for k, v in batch.items()}
        logits = logits_of(functional_call(model, named, (), alone))[0]
        each = torch.autograd.grad(logits @ alpha[i], list(named.values()), allow_unused=True)
        pairs = zip(named, each, strict=True)
        rows.append(sum((directions[n] * g).flatten(1).sum(1) for n, g in pairs if g is not None))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("change", [gated, learned, performer])
def test_where_a_layer_has_no_forward_mode_examples_go_back_one_by_one(make, change):
    model, batch = make(change)
    model.eval()
    generator = torch.Generator().manual_seed(1)
    directions = {
        n: torch.randn(2, *p.shape, generator=generator, dtype=torch.float64)
        for n, p in model.named_parameters()
    }
    alpha = torch.randn(3, 3, generator=generator, dtype=torch.float64)

    def forward():
        return model(**batch).logits

    found = by_passes(model, directions, forward, alpha)
    assert torch.allclose(found, one_by_one(model, batch, directions, alpha), rtol=1e-8)


class Norms(torch.nn.Module):
    """Every layer that is known: an embedding with padding, both norms, linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words = torch.nn.Embedding(9, 4, padding_idx=0)
        self.layer = torch.nn.LayerNorm((5, 4))  # over tokens too
        self.first = torch.nn.Linear(4, 6)
        self.root = torch.nn.RMSNorm(6)
        self.last = torch.nn.Linear(6, 3)
        self.double()
        for norm in (self.layer, self.root):
            torch.nn.init.normal_(norm.weight)

    def forward(self, ids):
        hidden = self.root(torch.tanh(self.first(self.layer(self.words(ids)))))
        return {"logits": self.last(hidden.mean(dim=1))}


def test_layers_that_are_known_take_one_pass():
    model = Norms()
    generator = torch.Generator().manual_seed(1)
    batch = {"ids": torch.randint(0, 9, (4, 5), generator=generator)}
    batch["ids"][:, 0] = 0
    directions = {
        n: torch.randn(2, *p.shape, generator=generator, dtype=torch.float64)
        for n, p in model.named_parameters()
    }
    alpha = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def backward():
        logits = model(**batch)["logits"]
        logits.backward(alpha)
        return logits

    expected = one_by_one(model, batch, directions, alpha)
    found = by_layers(model, directions, backward)
    assert found is not None
    assert torch.allclose(found, expected, rtol=1e-10)
    queries = [
        Query({"ids": row[None]}, lambda z, a=a: z @ a)
        for row, a in zip(batch["ids"], alpha, strict=True)
    ]
    asking = QueryGradients(model, queries, dict(model.named_parameters()))
    assert len(asking.groups) == 1
    gradients = asking.gradients(asking.groups[0])
    each = {n: asking.whole(n, g).flatten(1) for n, g in gradients.items()}
    products = sum(directions[n].flatten(1) @ g.T for n, g in each.items())
    assert torch.allclose(products, expected, rtol=1e-10)


@pytest.fixture
def trained(tiny, make, tmp_path):
    """A recorded training of a changed BERT, and a question to ask of it."""

    def run(change, dropout=0.0, *, texts=None, **options):
        model, _ = make(change, dropout)
        tokenizer = tiny.make_tokenizer()
        some, target = tiny.make_table(12)
        texts, options = texts or some, {"max_steps": 3, "learning_rate": 0.05} | options
        data, collate = Documents(texts, tokenizer, 48, target), PaddedBatches(tokenizer)
        trainer = longarc.Trainer(
            model, tiny.make_arguments(tmp_path, **options),
            train_dataset=data, data_collator=collate, loss=longarc.CrossEntropyLoss(),
            callbacks=[longarc.PathRecorder()],
        )  # fmt: skip
        trainer.train()
        asked = Documents(["court law liability the a notice of bank"], tokenizer, 48)
        query = Query(collate([asked[0]]), measure("margin", 0, 2))
        return RecordedPath(tmp_path / "path"), model, data, collate, [query]

    return run


@pytest.mark.parametrize("change", [gated, learned])
def test_contributions_add_up_there(trained, change):
    (e,) = explain(*trained(change, dropout=0.2), tolerance=1e-9)
    assert e.relative_residual < 1e-7
    assert np.abs(e.contributions).sum() > 1e-3


def trained_again(path, model, data, collate, query, weights, rate):
    """The query's value after the recorded steps of plain descent, with documents weighted."""
    for name, value in path.parameters(0).items():
        model.get_parameter(name).data.copy_(value)
    model.eval()
    for (batch,) in path.batches(0, path.end):
        items = collate([data[i] for i in batch.documents])
        target = items.pop("labels")
        each = torch.nn.functional.cross_entropy(model(**items).logits, target, reduction="none")
        model.zero_grad()
        (each * weights[list(batch.documents)]).mean().backward()
        with torch.no_grad():
            for name in path.parameters(0):
                parameter = model.get_parameter(name)
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    with torch.no_grad():
        return float(query.value(model(**query.inputs).logits[0]))


def test_effects_need_second_derivatives(trained):
    with pytest.raises(ModelError, match=r"the training twice.*contributions instead"):
        effects(*trained(learned))


def test_effects_need_second_derivatives_of_every_batch(trained):
    """Short documents take another way through the kernel, and the last ones are short."""
    texts = ["pump oil", "court law liability the a notice of bank " * 3, *["pump oil"] * 10]
    given = trained(
        learned, texts=texts, per_device_train_batch_size=1, train_sampling_strategy="sequential"
    )
    done = []
    with pytest.raises(ModelError, match=r"the training twice.*contributions instead"):
        effects(*given, advance=done.append)
    assert not done


def test_effects_need_the_dropout_of_the_training(trained):
    with pytest.raises(ModelError, match=r"drops other weights.*contributions instead"):
        effects(*trained(gated, dropout=0.2))


@pytest.mark.parametrize("change", [gated, linear])
def test_a_kernel_with_second_derivatives_has_effects(trained, change):
    given = path, model, data, collate, queries = trained(change)
    (found,) = effects(*given)
    for i in (0, 9):
        values = []
        for change in (1e-4, -1e-4):
            weights = torch.ones(12, dtype=torch.float64)
            weights[i] += change
            values.append(trained_again(path, model, data, collate, queries[0], weights, 0.05))
        assert found[i] == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)
