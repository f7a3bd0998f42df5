"""set_residual_attention on real architectures, beside a textbook that adds up matrices."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from longarc.dynamics.hessian import HessianProducts
from longarc.errors import ModelError, OptionError
from longarc.models.attention.interface import attention_layers, set_attention
from longarc.models.attention.residual_interface import set_residual_attention
from longarc.models.attention.residual_state import State
from longarc.models.loading import load_classifier, load_model
from longarc.models.mean_pooled import from_encoder
from longarc.models.positions import stretch_positions
from longarc.training.parameters import parameter_groups

LAYERS = 3
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip
FAMILIES = {
    "bert": {}, "ernie": {}, "electra": {"embedding_size": 8}, "albert": {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 24},
    "roberta": {"pad_token_id": 1}, "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1}, "data2vec-text": {"pad_token_id": 1},
    "roberta-prelayernorm": {"pad_token_id": 1},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3,
                   "sep_token_id": 3, "local_attention": 8, "global_attn_every_n_layers": 2},
}  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES)


def build(family="bert", kind=AutoModel, **more):
    torch.manual_seed(0)
    model = kind.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family] | more))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def document():
    ids = torch.randint(5, 60, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def states(model, document):
    """The last states of the tokens that are no padding."""
    return model(**document).last_hidden_state[document["attention_mask"].bool()]


def open_gates(model):
    with torch.no_grad():
        model.base_model.residual_attention.gates.copy_(torch.tensor([0.7, -0.4]))
    return model


def textbook(model, document, *, gates=None, mean=False, last=LAYERS):
    """The states of a plain model whose attention adds up the matrices of scores."""
    scores = []

    def attention(module, query, key, value, mask, scaling=None, dropout=0.0, **_):
        scores.append(query @ key.mT * scaling)
        total, count = scores[-1], 1
        factor = 1.0
        for layer in range(len(scores) - 1, max(0, len(scores) - last), -1):
            factor = factor if gates is None else factor * gates[layer - 1]
            total, count = total + factor * scores[layer - 1], count + 1
        total = total / count if mean else total
        total = total if mask is None else total + mask
        return (total.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("textbook", attention)
    AttentionMaskInterface.register("textbook", eager_mask)
    model = copy.deepcopy(model)
    model.set_attn_implementation("textbook")
    return states(model, document), model


@every_family
@pytest.mark.parametrize("options", [{}, {"mean": True}, {"last": 2}, {"gate": True}], ids=str)
def test_states_are_the_textbooks_in_every_family(family, document, options):
    model = build(family)
    plain = states(model, document)
    gate = {"gates": torch.tensor([0.7, -0.4])} if options.get("gate") else {}
    want, _ = textbook(model, document, **gate, **{k: v for k, v in options.items() if not gate})
    assert set_residual_attention(model, **options) is model
    if gate:
        torch.testing.assert_close(states(model, document), plain, rtol=0, atol=3e-6)
        open_gates(model)
    torch.testing.assert_close(states(model, document), want, rtol=1e-4, atol=2e-5)
    assert not torch.allclose(want, plain, atol=1e-3)
    set_residual_attention(model, on=False)
    assert torch.equal(states(model, document), plain)
    assert not hasattr(model.config, "longarc")
    assert model.config._attn_implementation == "sdpa"


def test_layers_that_are_shared_by_some(document):
    """Groups of 2, 1, 2, 1 and 1 layers."""
    model = build("albert", num_hidden_layers=7, num_hidden_groups=5)
    want, _ = textbook(model, document, last=7)
    set_residual_attention(model)
    torch.testing.assert_close(states(model, document), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "distilbert"])
def test_gradients_are_the_textbooks(family, document):
    model = build(family).double()
    gates = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    want, plain = textbook(model, document, gates=gates)
    pull = torch.randn(want.shape, dtype=torch.float64)
    theirs = torch.autograd.grad(want, [*plain.parameters(), gates], pull, allow_unused=True)
    open_gates(set_residual_attention(model, gate=True))
    parameters = dict(model.named_parameters())
    mine_gates = parameters.pop("residual_attention.gates")
    mine = torch.autograd.grad(
        states(model, document), [*parameters.values(), mine_gates], pull, allow_unused=True
    )
    assert mine[-1].abs().min() > 1e-6
    for one, two in zip(mine, theirs, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two.to(one.dtype), rtol=1e-5, atol=1e-5)


@every_family
def test_a_document_depends_on_neither_padding_nor_company(family):
    model = set_residual_attention(build(family))
    ids = torch.randint(5, 60, (1, 17), generator=torch.Generator().manual_seed(2))
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    other = torch.randint(5, 60, (1, 33), generator=torch.Generator().manual_seed(3))
    both = {
        "input_ids": torch.cat([torch.nn.functional.pad(ids, (0, 16)), other]),
        "attention_mask": torch.ones(2, 33, dtype=torch.long),
    }
    both["attention_mask"][0, 17:] = 0
    with torch.no_grad():
        got = model(**both).last_hidden_state[0, :17]
        torch.testing.assert_close(got, states(model, alone), rtol=1e-5, atol=1e-5)


@every_family
@pytest.mark.parametrize("gate", [False, True])
def test_a_saved_model_opens_as_it_was(tmp_path, family, gate, document):
    model = set_residual_attention(build(family), gate=gate, last=2)
    if gate:
        open_gates(model)
    model.save_pretrained(tmp_path)
    opened = load_model(tmp_path)
    assert opened.config.longarc["residual_attention"] == {"gate": gate, "mean": False, "last": 2}
    assert torch.equal(states(opened, document), states(model, document))
    with pytest.raises(ValueError, match="model type `longarc-"):
        AutoModel.from_pretrained(tmp_path)


def test_under_heads_with_kernels_and_stretched_positions(tmp_path, document):
    for name, model in {
        "masked": build(kind=AutoModelForMaskedLM),
        "classifier": build("distilbert", AutoModelForSequenceClassification),
        "pooled": from_encoder(build("electra"), num_labels=3).eval(),
    }.items():
        stretch_positions(model, 100)
        set_attention(model, "learned", layers=[1])
        open_gates(set_residual_attention(model, gate=True))
        model.save_pretrained(tmp_path / name)
        opened = load_model(tmp_path / name)
        assert torch.equal(opened(**document).logits, model(**document).logits)
        assert set(model.base_model.config.longarc) == {
            "positions", "attention", "residual_attention"
        }  # fmt: skip
    again = load_classifier(tmp_path / "pooled", labels=("a", "b"))
    torch.testing.assert_close(again.base_model.residual_attention.gates, torch.tensor([0.7, -0.4]))


@pytest.mark.parametrize("name", ["performer", "linear", "block-sparse", "local-clustered"])
@pytest.mark.parametrize("options", [{}, {"last": 2}, {"gate": True}], ids=str)
def test_kernels_in_either_order(name, options, document):
    """Neither call undoes the other, whichever comes first."""
    one, two = build(), build()
    set_residual_attention(set_attention(one, name, seed=3, layers=[0, -1]), **options)
    set_attention(set_residual_attention(two, **options), name, seed=3, layers=[0, -1])
    for model in (one, two):
        if "gate" in options:
            open_gates(model)
        kernels = [layer.attention_kernel for _, layer in attention_layers(model)]
        assert [kernel.width for kernel in kernels] == [8, 8 * options.get("last", LAYERS)]
    assert one.config.longarc == two.config.longarc
    assert torch.equal(states(one, document), states(two, document))
    want, _ = textbook(build(), document, **gates_of(options))
    set_attention(one, "exact")
    torch.testing.assert_close(states(one, document), want, rtol=1e-4, atol=2e-5)
    set_residual_attention(two, on=False)
    alone = set_attention(build(), name, seed=3, layers=[0, -1])
    assert torch.equal(states(two, document), states(alone, document))


def gates_of(options):
    return {"gates": torch.tensor([0.7, -0.4])} if "gate" in options else options


def test_a_whole_pattern_in_kernels_is_exact(document):
    """A block-sparse kernel that sees all of 20 tokens, on queries as wide as the layers'."""
    model = set_residual_attention(build())
    exact = states(model, document)
    set_attention(model, "block-sparse", window=64, num_global=1, num_random=0)
    torch.testing.assert_close(states(model, document), exact, rtol=1e-4, atol=2e-5)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def gradients(model, *documents):
    """Of one backward pass through all documents' forward passes."""
    model.zero_grad()
    sum(states(model, d).square().mean() for d in documents).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
def test_checkpointing_neither_changes_nor_doubles_anything(family, document, dropout):
    model = open_gates(set_residual_attention(build(family), gate=True)).train()
    model = model if dropout else without_dropout(model)
    torch.manual_seed(0)
    plain = gradients(model, document)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    saved = gradients(model, document)
    assert saved.keys() == plain.keys()
    assert "residual_attention.gates" in saved
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, msg=name)


def test_a_layer_that_is_run_again_finds_what_it_left():
    model = set_residual_attention(build())
    state = State(model.residual_attention)
    layers = [layer.attention.self for layer in model.encoder.layer]
    first, second, again = torch.randn(3, 1, 2, 4, 8)[:, None].unbind()
    state.add(layers[0], first, first, None)
    state.add(layers[1], second, second, None)
    found = state.add(layers[0], again, again, None)
    assert len(found.queries) == len(found.keys) == 1
    assert found.queries[0] is first
    found = state.add(layers[1], again, again, None)
    assert found.keys[0] is first
    assert found.keys[1] is second
    with pytest.raises(ModelError, match="did not go through"):
        State(model.residual_attention).add(layers[1], second, second, None)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
def test_reentrant_checkpointing_is_refused(document):
    model = set_residual_attention(build()).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ModelError, match="use_reentrant"):
        model(**document)
    states(model.eval(), document)


def test_a_checkpointed_shared_layer_is_refused(document):
    from torch.utils.checkpoint import checkpoint

    model = set_residual_attention(build("albert")).train()
    group = model.encoder.albert_layer_groups[0]
    plain = group.forward
    group.forward = lambda *args, **more: checkpoint(plain, *args, use_reentrant=False, **more)
    with pytest.raises(ModelError, match="serves as several"):
        states(model, document).sum().backward()


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_two_passes_before_one_backward(family, document):
    model = without_dropout(open_gates(set_residual_attention(build(family), gate=True)))
    other = {"input_ids": document["input_ids"].flip(1)[:, :11]}
    other["attention_mask"] = torch.ones_like(other["input_ids"])
    first, second = gradients(model, document), gradients(model, other)
    both = gradients(model, document, other)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, first[name] + second[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_copies_replicas_and_threads_do_not_meet(family):
    model = open_gates(set_residual_attention(build(family), gate=True))
    # As torch.nn.parallel.replicate makes them: a copy of every module, with its attributes.
    replica = copy.copy(model.base_model)._replicate_for_data_parallel()
    workers = [model, copy.deepcopy(model), replica, model]
    documents = []
    for i in range(len(workers)):
        ids = torch.randint(5, 60, (2, 12 + i), generator=torch.Generator().manual_seed(i))
        documents.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    want = [states(model, d).detach() for d in documents]
    got: list[list[torch.Tensor]] = [[] for _ in workers]

    def work(i):
        for _ in range(10):
            got[i].append(states(workers[i], documents[i]).detach())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(got, want, strict=True):
        assert len(mine) == 10
        assert all(torch.equal(one, theirs) for one in mine)
    with torch.no_grad():
        workers[1].residual_attention.gates.zero_()
    assert not torch.equal(states(workers[1], documents[0]), want[0])
    assert torch.equal(states(model, documents[0]), want[0])


def test_a_compiled_model_is_one_graph_and_gives_the_same(document):
    model = set_residual_attention(build(num_hidden_layers=2), gate=True)
    torch.nn.init.constant_(model.residual_attention.gates, 0.7)
    plain = states(model, document)
    plain.square().mean().backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    got = states(torch.compile(model, backend="aot_eager", fullgraph=True), document)
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-5)
    got.square().mean().backward()
    assert "residual_attention.gates" in want
    for name, gradient in want.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4, msg=name
        )


def test_set_again_it_keeps_what_was_learnt(document):
    model = open_gates(set_residual_attention(set_attention(build(), "learned"), gate=True))
    with torch.no_grad():
        for _, layer in attention_layers(model):
            for parameter in layer.attention_kernel.parameters():
                parameter.add_(0.1)
    before = states(model, document)
    assert torch.equal(states(set_residual_attention(model, gate=True), document), before)
    set_residual_attention(model, gate=True, last=2)
    assert model.residual_attention.gates.tolist() == pytest.approx([0.7, -0.4])
    assert len(model._forward_pre_hooks) == 1


def test_gates_are_trained(document):
    model = from_encoder(set_residual_attention(build(), gate=True), num_labels=2)
    gates = model.encoder.residual_attention.gates
    groups = parameter_groups(model, learning_rate=0.1, layer_decay=0.5, weight_decay=0.1)
    assert [
        (group["lr"], group["weight_decay"])
        for group in groups
        if any(parameter is gates for parameter in group["params"])
    ] == [(0.1, 0.0)]
    model(**document).logits[:, 0].sum().backward()
    assert (gates.grad != 0).all()


@pytest.mark.parametrize("options", [{}, {"gate": True}], ids=str)
def test_exact_hessian_products_are_those_of_differences(document, options):
    model = set_residual_attention(build().double(), **options)
    parameters = list(model.parameters())

    def loss():
        states = model(**document).last_hidden_state
        return states[document["attention_mask"].bool()].square().mean()

    vector = torch.randn(
        sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(0)
    ).double()
    exact, difference = (
        HessianProducts(loss, parameters, method=method)(vector)
        for method in ("exact", "finite-difference")
    )
    assert (exact - difference).norm() < 1e-4 * difference.norm()


def test_refusals(document):
    model = build()
    for wrong in ({"last": 1}, {"gate": 1}, {"gate": True, "mean": True}):
        with pytest.raises(OptionError):
            set_residual_attention(model, **wrong)
    assert not hasattr(model, "residual_attention")
    shared = set_attention(build("albert"), "performer")
    with pytest.raises(ModelError, match="serves as several"):
        set_residual_attention(shared)
    shared = set_residual_attention(build("albert"))
    with pytest.raises(ModelError, match="serves as several"):
        set_attention(shared, "performer")
    set_residual_attention(model)
    hidden = torch.randn(1, 4, 16)
    with pytest.raises(ModelError, match="without the scores"):
        model.encoder(hidden)
    mpnet = AutoModel.from_config(AutoConfig.for_model("mpnet", **SIZES))
    with pytest.raises(ModelError, match="cannot be replaced"):
        set_residual_attention(mpnet)
    with pytest.raises(ModelError, match="one value a token"):
        model(**document | {"attention_mask": torch.ones(2, 1, 20, 20)})
