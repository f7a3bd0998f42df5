"""Gradients of several queries from one pass are those of each alone."""

from __future__ import annotations

import pytest
import torch

import longarc
from longarc.attribution.quadrature import dot, dots
from longarc.attribution.query import Query, measure
from longarc.attribution.query_gradients import QueryGradients
from longarc.attribution.sweep import explain
from longarc.errors import ModelError
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recording.recorded_path import RecordedPath


def ask(tiny, texts, model):
    tokenizer = tiny.make_tokenizer()
    collate, documents = PaddedBatches(tokenizer), Documents(texts, tokenizer, 48)
    batches = [collate([documents[i]]) for i in range(len(texts))]
    queries = [Query(b, measure("margin", i % 3, (i + 1) % 3)) for i, b in enumerate(batches)]
    return QueryGradients(model, queries, dict(model.named_parameters()))


def alone(model, query):
    model.eval()
    value = query.value(model(**query.inputs).logits[0])
    names, parameters = zip(*model.named_parameters(), strict=True)
    each = torch.autograd.grad(value, parameters, allow_unused=True)
    return float(value), {n: g for n, g in zip(names, each, strict=True) if g is not None}


def test_a_bert_with_texts_of_two_lengths(tiny):
    model = tiny.make_model(0.2).double()
    long = " ".join(["pump oil the a valve notice"] * 3)
    asking = ask(tiny, ["pump valve", long, "oil leak the", long + " a", "invoice"], model)
    assert [len(group) for group in asking.groups] == [3, 2]
    assert sorted(asking.order) == list(range(5))
    words = "encoder.embeddings.word_embeddings.weight"
    assert asking.shape(words)[0] < len(model.get_parameter(words))
    values = asking.values()
    for group in asking.groups:
        found = asking.gradients(group)
        for row, q in enumerate(group):
            value, gradients = alone(model, asking.queries[q])
            assert values[q] == pytest.approx(value, rel=1e-12)
            for name, parameter in model.named_parameters():
                mine = asking.whole(name, found[name])[row]
                there = gradients.get(name, torch.zeros_like(parameter))
                assert torch.allclose(mine, there, atol=1e-12), name
                assert torch.equal(asking.part(name, mine), found[name][row])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_words_that_were_not_there_before_are_refused(tiny):
    asking = ask(tiny, ["pump valve", "oil leak"], tiny.make_model())
    asking.queries[0].inputs["input_ids"][0, 1] = 100
    with pytest.raises(ModelError, match="other rows of an embedding"):
        asking.gradients(asking.groups[0])


def test_other_layers_are_asked_one_at_a_time(small):
    model = small.Net(odd=True)
    x = torch.ones(1, 4, dtype=torch.float64)
    queries = [Query({"x": s * x}, measure("logit", 0)) for s in (1.0, 2.0)]
    asking = QueryGradients(model, queries, dict(model.named_parameters()))
    assert asking.groups == [range(0, 1), range(1, 2)]
    assert asking.gradients(asking.groups[1])["gate"].shape == (1, 6)


def test_a_layer_that_is_not_what_it_seems_is_asked_one_at_a_time(small):
    model = small.Net()
    plain = model.first.forward
    model.first.forward = lambda x: plain(x) ** 2
    x = torch.ones(1, 4, dtype=torch.float64)
    queries = [Query({"x": s * x}, measure("logit", 0)) for s in (1.0, 2.0)]
    assert len(QueryGradients(model, queries, dict(model.named_parameters())).groups) == 2


def test_dots_are_inner_products_of_rows():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 2, 5001, generator=generator)
    b = torch.randn(2, 5001, generator=generator)
    expected = (rows.double() * b.double()).flatten(1).sum(dim=1)
    assert torch.allclose(dots(rows, b), expected, rtol=1e-5)
    assert dot(rows[1], b) == pytest.approx(float(expected[1]), rel=1e-5)
    assert dots(rows[..., :7], b[..., :7]).shape == (3,)


def test_groups_leave_the_order_of_the_answers(tiny, tmp_path):
    model, tokenizer = tiny.make_model(), tiny.make_tokenizer()
    texts, target = tiny.make_table(12)
    data, collate = Documents(texts, tokenizer, 48, target), PaddedBatches(tokenizer)
    trainer = longarc.Trainer(
        model, tiny.make_arguments(tmp_path, max_steps=2), train_dataset=data,
        data_collator=collate, loss=longarc.CrossEntropyLoss(), callbacks=[longarc.PathRecorder()],
    )  # fmt: skip
    trainer.train()
    long = " ".join(["pump oil the a valve notice"] * 3)
    asked = Documents(["pump", long, "oil leak"], tokenizer, 48)
    queries = [
        Query(collate([asked[i]]), measure("logit", i), name=f"number {i}") for i in range(3)
    ]
    found = explain(RecordedPath(tmp_path / "path"), model, data, collate, queries)
    assert [e.name for e in found] == ["number 0", "number 1", "number 2"]
    with torch.no_grad():
        ends = [float(q.value(model.eval()(**q.inputs).logits[0])) for q in queries]
    assert [e.final for e in found] == pytest.approx(ends, rel=1e-5)
