"""Stretched positions: the formula, what stays the same, what follows, and what is refused."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from longarc.errors import ModelError, OptionError
from longarc.models.hierarchical_positions import HierarchicalPositions
from longarc.models.mean_pooled import from_encoder
from longarc.models.position_tables import FAMILIES
from longarc.models.positions import restore_positions, stretch_positions

N = 6  # trained positions
LONG = 23  # neither n, nor a multiple of it, nor n²

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24,
}  # fmt: skip
OWN = {
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "ernie": {"use_task_id": True},
    "mpnet": {"pad_token_id": 3},  # its code has 1 all the same
}
PADDING_ROWS = {family: 2 * padded for family, padded in FAMILIES.items()}
METHODS = ("hierarchical", "copy", "interpolate")


def make(family: str, kind: str = "AutoModel", seed: int = 0, **own):
    """A tiny model of a family with N positions, and weights large enough that inputs matter."""
    import transformers

    padding = {"pad_token_id": 1} if PADDING_ROWS[family] else {}
    rows = {"max_position_embeddings": N + PADDING_ROWS[family]}
    settings = SIZES | rows | padding | OWN.get(family, {}) | own
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(family, **settings)
    model = getattr(transformers, kind).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def table_of(model) -> nn.Embedding:
    (table,) = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    return table


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(4, 60, shape, generator=torch.Generator().manual_seed(1))


def by_the_formula(p: torch.Tensor, length: int, alpha: float, origin: int = 2) -> torch.Tensor:
    """Su's formula, index by index, in float64: q_{(i−1)n+j} = α u_i + (1 − α) u_j.

    From another origin the coarse index reads the table from there on.
    """
    p, n = p.detach().double(), len(p)
    fine = [(p[j] - alpha * p[0]) / (1 - alpha) for j in range(n)]
    moved = [p[0] + p[i] - p[origin - 1] for i in range(origin - 1, n)]
    coarse = [(vector - alpha * p[0]) / (1 - alpha) for vector in moved]
    pairs = itertools.product(range(len(coarse)), range(n))
    q = [alpha * coarse[i] + (1 - alpha) * fine[j] for i, j in pairs]
    return torch.stack(q[:length])


def snapshot(model: nn.Module) -> dict:
    return {
        "parameters": {k: (v, v.clone()) for k, v in model.named_parameters()},
        "buffers": {k: v.clone() for k, v in model.named_buffers()},
        "modules": {k: type(v) for k, v in model.named_modules()},
        "config": model.config.to_dict() if hasattr(model, "config") else None,
    }


def assert_unchanged(model: nn.Module, before: dict) -> None:
    now = snapshot(model)
    assert now["config"] == before["config"]
    assert now["modules"] == before["modules"]
    assert list(now["parameters"]) == list(before["parameters"])
    for name, (parameter, value) in before["parameters"].items():
        assert now["parameters"][name][0] is parameter
        assert torch.equal(parameter, value)
    for name, value in before["buffers"].items():
        assert torch.equal(now["buffers"][name], value)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


class TestEveryFamily:
    @pytest.mark.parametrize("method", METHODS)
    def test_longer_documents_are_read(self, family, method):
        model = stretch_positions(make(family), LONG, method=method)
        states = model(input_ids=ids(2, LONG)).last_hidden_state
        assert states.shape == (2, LONG, 16)
        assert states.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids(2, LONG + 1))

    @pytest.mark.parametrize("method", ["hierarchical", "copy"])
    def test_documents_of_the_trained_length_are_read_as_before(self, family, method):
        model = make(family)
        inputs = {"input_ids": ids(3, N), "output_hidden_states": True}
        before = model(**inputs).hidden_states
        after = stretch_positions(model, LONG, method=method)(**inputs).hidden_states
        assert len(before) == 3
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_the_vectors_are_those_of_the_formula(self, family):
        model = make(family)
        offset, table = PADDING_ROWS[family], table_of(model)
        expected = by_the_formula(table.weight[offset:], LONG, 0.3)
        padding = table.weight[:offset].clone()
        stretch_positions(model, LONG, alpha=0.3)
        found = table_of(model)(torch.arange(offset + LONG))
        assert torch.equal(found[:offset], padding)
        torch.testing.assert_close(found[offset:].double(), expected, rtol=1e-5, atol=1e-6)

    def test_no_parameter_is_new_and_none_is_another(self, family):
        model = make(family)
        before = dict(model.named_parameters())
        names = list(model.state_dict())
        stretch_positions(model, LONG)
        after = dict(model.named_parameters())
        assert list(before) == list(after)
        assert all(before[name] is after[name] for name in before)
        assert list(model.state_dict()) == names

    @pytest.mark.parametrize("method", METHODS)
    def test_buffers_and_config_follow(self, family, method):
        model = make(family)
        rows = LONG + PADDING_ROWS[family]
        before = dict(model.named_buffers())
        names = list(model.state_dict())
        stretch_positions(model, LONG, method=method)
        after = dict(model.named_buffers())
        assert list(after) == list(before)
        sized = [name for name in after if name.endswith(("position_ids", "token_type_ids"))]
        assert len(sized) == (1 if family in ("distilbert", "mpnet") else 2)
        for name in sized:
            assert after[name].dtype == before[name].dtype == torch.long
            expected = range(rows) if name.endswith("position_ids") else [0] * rows
            assert after[name].tolist() == [list(expected)]
        assert list(model.state_dict()) == names  # the buffers are still not saved
        assert model.config.max_position_embeddings == rows

    def test_padding_on_either_side_changes_nothing(self, family):
        """RoBERTa's family gives padding its own row and no position, wherever it is."""
        model = stretch_positions(make(family), LONG)
        document = ids(1, LONG - 5)
        padding = 1 if PADDING_ROWS[family] else 0
        alone = model(input_ids=document).last_hidden_state
        pads, ones = torch.full((1, 5), padding), torch.ones_like(document)
        padded = model(
            input_ids=torch.cat([document, pads], 1),
            attention_mask=torch.cat([ones, torch.zeros_like(pads)], 1),
        ).last_hidden_state[:, :-5]
        torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)
        if PADDING_ROWS[family] and family != "mpnet":  # MPNet's bias counts padding at the left
            left = model(
                input_ids=torch.cat([pads, document], 1),
                attention_mask=torch.cat([torch.zeros_like(pads), ones], 1),
            ).last_hidden_state[:, 5:]
            torch.testing.assert_close(left, alone, rtol=1e-4, atol=1e-5)

    def test_vectors_in_place_of_ids(self, family):
        model = stretch_positions(make(family), LONG)
        inputs = ids(2, LONG)
        vectors = model.get_input_embeddings()(inputs)
        torch.testing.assert_close(
            model(inputs_embeds=vectors).last_hidden_state,
            model(input_ids=inputs).last_hidden_state,
        )

    @pytest.mark.parametrize(
        ("kind", "width"),
        [("AutoModelForMaskedLM", 60), ("AutoModelForSequenceClassification", None)],
    )
    def test_with_heads(self, family, kind, width):
        model = make(family, kind)
        short = ids(2, N)
        before = model(input_ids=short).logits
        assert stretch_positions(model, LONG) is model
        assert torch.equal(model(input_ids=short).logits, before)
        assert model(input_ids=ids(2, LONG)).logits.shape[1:] == (
            (LONG, width) if width else (model.config.num_labels,)
        )
        assert model.config.longarc["positions"]["max_length"] == LONG

    def test_with_the_mean_pooled_head(self, family):
        model = from_encoder(make(family), num_labels=3).eval()
        before = model(input_ids=ids(2, N)).logits
        stretch_positions(model, LONG)
        assert torch.equal(model(input_ids=ids(2, N)).logits, before)
        assert model(input_ids=ids(2, LONG)).logits.shape == (2, 3)
        rows = LONG + PADDING_ROWS[family]
        for config in (model.config.encoder, model.encoder.config):
            assert config.max_position_embeddings == rows
            assert config.longarc["positions"] == {
                "method": "hierarchical", "alpha": 0.4, "origin": 2, "trained": N,
                "max_length": LONG,
            }  # fmt: skip
        assert not hasattr(model.config, "longarc")

    def test_restored_from_its_record(self, family):
        model = make(family)
        weights = copy.deepcopy(model.state_dict())
        stretch_positions(model, LONG, alpha=0.2)
        record = model.config.longarc["positions"]
        fresh = make(family, seed=7)
        fresh.load_state_dict(weights)
        assert restore_positions(fresh, record) is fresh
        assert fresh.config.longarc["positions"] == record
        inputs = ids(2, LONG)
        assert torch.equal(
            fresh(input_ids=inputs).last_hidden_state, model(input_ids=inputs).last_hidden_state
        )


class TestTheOtherMethods:
    def test_copy_repeats_the_table(self, family):
        model = make(family)
        offset, old = PADDING_ROWS[family], table_of(model).weight.clone()
        stretch_positions(model, LONG, method="copy")
        new = table_of(model).weight
        assert torch.equal(new[:offset], old[:offset])
        for k in range(LONG):
            assert torch.equal(new[offset + k], old[offset + k % N])

    def test_interpolation_is_linear(self, family):
        model = make(family)
        offset, old = PADDING_ROWS[family], table_of(model).weight.clone().detach()
        stretch_positions(model, LONG, method="interpolate")
        new = table_of(model).weight
        assert torch.equal(new[:offset], old[:offset])
        p = old[offset:].double()
        for k in range(LONG):
            place = k * (N - 1) / (LONG - 1)
            i = min(int(place), N - 2)
            expected = p[i] + (place - i) * (p[i + 1] - p[i])
            torch.testing.assert_close(new[offset + k].double(), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("method", ["copy", "interpolate"])
    def test_an_ordinary_table_without_a_record(self, method):
        model = make("roberta")
        table_of(model).weight.requires_grad_(False)
        table = table_of(stretch_positions(model, LONG, method=method))
        assert type(table) is nn.Embedding
        assert (table.num_embeddings, table.padding_idx) == (LONG + 2, 1)
        assert not table.weight.requires_grad
        assert not hasattr(model.config, "longarc")

    @pytest.mark.parametrize("method", ["copy", "interpolate"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_the_type_is_kept(self, method, dtype):
        model = make("bert").to(dtype)
        assert table_of(stretch_positions(model, LONG, method=method)).weight.dtype == dtype

    @pytest.mark.parametrize("method", METHODS)
    def test_what_is_stretched_can_be_stretched(self, method):
        model = stretch_positions(make("bert"), LONG, method="copy")
        stretch_positions(model, 2 * LONG, method=method)
        assert model(input_ids=ids(1, 2 * LONG)).last_hidden_state.shape == (1, 2 * LONG, 16)
        assert model.config.max_position_embeddings == 2 * LONG


class TestTheHierarchicalTable:
    @given(
        n=st.integers(1, 9),
        offset=st.integers(0, 3),
        share=st.floats(0.01, 0.95).filter(lambda a: a != 0.5),
        data=st.data(),
    )
    @settings(deadline=None, max_examples=60)
    def test_formula_and_gradient(self, n, offset, share, data):
        """Against the float64 formula, and autograd through the table written out."""
        length = data.draw(st.integers(n, n * n))
        generator = torch.Generator().manual_seed(n * 100 + length)
        weight = torch.randn(offset + n, 3, dtype=torch.float64, generator=generator)
        trained = nn.Embedding.from_pretrained(weight.clone(), freeze=False)
        table = HierarchicalPositions(trained, length, alpha=share, offset=offset)
        places = torch.randint(0, offset + length, (2, 7), generator=generator)
        pull = torch.randn(2, 7, 3, dtype=torch.float64, generator=generator)

        found = table(places)
        (found * pull).sum().backward()
        p = weight.clone().requires_grad_()
        u = (p[offset:] - share * p[offset]) / (1 - share)
        q = (share * u[:, None] + (1 - share) * u[None]).flatten(0, 1)
        written = torch.cat([p[:offset], q])[places]
        (written * pull).sum().backward()

        scale = 1e-12 / (1 - share)
        torch.testing.assert_close(found, written, rtol=1e-10, atol=scale)
        torch.testing.assert_close(table.weight.grad, p.grad, rtol=1e-9, atol=scale * 100)
        assert trained.weight is table.weight
        everything = table(torch.arange(offset, offset + length)).detach()
        expected = by_the_formula(weight[offset:], length, share, origin=1)
        torch.testing.assert_close(everything, expected, rtol=1e-10, atol=scale)
        assert torch.equal(everything[:n], weight[offset:])

    @pytest.mark.parametrize("origin", [1, 2, 3])
    def test_from_another_origin(self, origin):
        trained = nn.Embedding(5, 3).double()
        length = 5 * (5 - origin + 1)
        table = HierarchicalPositions(trained, length, alpha=0.3, origin=origin)
        everything = table(torch.arange(length)).detach()
        expected = by_the_formula(trained.weight, length, 0.3, origin)
        torch.testing.assert_close(everything, expected, rtol=1e-12, atol=1e-12)
        model = stretch_positions(make("bert"), 6 * (6 - origin + 1), origin=origin)
        assert table_of(model).origin == origin
        with pytest.raises(OptionError, match="at most"):
            stretch_positions(make("bert"), 6 * (6 - origin + 1) + 1, origin=origin)
        with pytest.raises(OptionError, match=f"origin={origin}"):
            stretch_positions(model, LONG, origin=origin + 1)

    def test_gradcheck(self):
        places = torch.tensor([0, 2, 3, 5, 8, 9, 10])
        table = HierarchicalPositions(nn.Embedding(4, 2).double(), 9, alpha=0.4, offset=1)

        def lookup(weight):
            return torch.func.functional_call(table, {"weight": weight}, (places[:-1],))

        assert torch.autograd.gradcheck(lookup, (table.weight.detach().requires_grad_(),))

    def test_all_trained_vectors_learn_from_a_long_document(self):
        model = stretch_positions(make("roberta"), LONG)
        model(input_ids=ids(2, LONG)).last_hidden_state.square().sum().backward()
        gradient = table_of(model).weight.grad
        assert (gradient[2:].abs().sum(1) > 0).all()
        assert not gradient[:2].any()  # no padding in the batch

    def test_short_documents_have_the_gradients_they_had(self, family):
        gradients = []
        for length in (None, LONG):
            model = make(family)
            if length:
                stretch_positions(model, length)
            model(input_ids=ids(2, N)).last_hidden_state.square().sum().backward()
            gradients.append(table_of(model).weight.grad)
        assert torch.equal(*gradients)

    def test_padding_has_no_gradient_as_before(self):
        """RoBERTa's table has a padding_idx, whose row never learns."""
        model = stretch_positions(make("roberta"), LONG)
        inputs = ids(2, LONG)
        inputs[:, -4:] = 1
        model(input_ids=inputs).last_hidden_state.square().sum().backward()
        assert not table_of(model).weight.grad[1].any()

    def test_ids_of_any_shape_and_integer_type(self):
        table = HierarchicalPositions(nn.Embedding(4, 2), 16, alpha=0.4)
        flat = table(torch.arange(16))
        assert torch.equal(
            table(torch.arange(16, dtype=torch.int32).view(2, 2, 4)).flatten(0, 2), flat
        )
        assert table(torch.tensor(7)).shape == (2,)
        assert table(torch.empty(0, 3, dtype=torch.long)).shape == (0, 3, 2)

    @pytest.mark.parametrize("wrong", [-1, 14, 15, 100])
    def test_ids_outside_fail_as_in_any_table(self, wrong):
        table = HierarchicalPositions(nn.Embedding(5, 2), 13, alpha=0.4, offset=1)
        table(torch.tensor([13]))
        with pytest.raises(IndexError):
            table(torch.tensor([0, wrong]))

    def test_the_coarse_and_the_fine_index_are_told_apart(self):
        """The reason for α ≠ 0.5: at it, (i, j) and (j, i) are the same."""
        trained = nn.Embedding(5, 3)
        halves = HierarchicalPositions(trained, 25, alpha=0.5)(torch.arange(25)).view(5, 5, 3)
        torch.testing.assert_close(halves, halves.transpose(0, 1))
        others = HierarchicalPositions(trained, 25, alpha=0.4)(torch.arange(25))
        apart = torch.cdist(others, others) + torch.eye(25) * 9
        assert apart.min() > 1e-3

    def test_its_use_takes_no_more_rows_than_blocks(self):
        """512 trained, 1,024 asked for: two rows of shifts, not 262,144."""
        table = HierarchicalPositions(nn.Embedding(512, 4), 1024, alpha=0.4)
        assert table._shifts(2).shape == (2, 4)
        whole = HierarchicalPositions(nn.Embedding(512, 4), 512**2, alpha=0.4)
        assert whole(torch.tensor([[512**2 - 1]])).shape == (1, 1, 4)
        assert "max_length=262144, alpha=0.4" in repr(whole)


class TestPrecisionAndCompilation:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        model = make("roberta").to(dtype)
        expected = by_the_formula(table_of(model).weight[2:], LONG, 0.4)
        before = table_of(model)(torch.arange(2, 2 + N))
        stretch_positions(model, LONG)
        found = table_of(model)(torch.arange(2, 2 + LONG))
        assert found.dtype == dtype
        assert torch.equal(found[:N], before)
        # Two roundings: of the shift and of the sum.
        allowed = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), expected, rtol=allowed, atol=2 * allowed)
        assert model(input_ids=ids(1, LONG)).last_hidden_state.dtype == dtype

    def test_autocast(self, family):
        model = stretch_positions(make(family), LONG)
        exact = model(input_ids=ids(2, LONG)).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            assert table_of(model)(torch.tensor([LONG - 1])).dtype == torch.float32
            states = model(input_ids=ids(2, LONG)).last_hidden_state
        torch.testing.assert_close(states.float(), exact, rtol=0.1, atol=0.25)
        states.float().square().sum().backward()
        assert table_of(model).weight.grad.isfinite().all()

    def test_compiled_in_one_graph_at_changing_lengths(self):
        table = HierarchicalPositions(nn.Embedding(8, 4), 47, alpha=0.4, offset=1)
        compiled = torch.compile(table, backend="aot_eager", fullgraph=True)
        for length in (3, 20, 48):
            places = torch.arange(length)[None]
            torch.testing.assert_close(compiled(places), table(places))
            compiled(places).sum().backward()
        assert table.weight.grad.isfinite().all()

    def test_a_compiled_model_can_be_stretched(self):
        model = make("bert")
        compiled = torch.compile(model, backend="eager")
        compiled(input_ids=ids(1, N))
        stretch_positions(compiled, LONG)
        long = ids(1, LONG)
        torch.testing.assert_close(
            compiled(input_ids=long).last_hidden_state, model(input_ids=long).last_hidden_state
        )

    def test_gradient_checkpointing(self):
        model = stretch_positions(make("bert"), LONG).train()
        model.gradient_checkpointing_enable()
        model(input_ids=ids(1, LONG)).last_hidden_state.sum().backward()
        assert table_of(model).weight.grad.abs().sum() > 0

    def test_copies_are_independent(self):
        model = stretch_positions(make("bert"), LONG)
        twin = copy.deepcopy(model)
        stretch_positions(twin, 2 * N)
        with torch.no_grad():
            table_of(twin).weight.zero_()
        assert model.config.longarc["positions"]["max_length"] == LONG
        assert table_of(model).weight.abs().sum() > 0
        assert table_of(model).max_length == LONG

    def test_an_optimiser_made_before_goes_on(self):
        model = make("bert")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        stretch_positions(model, LONG)
        before = table_of(model)(torch.tensor([LONG - 1])).detach()
        model(input_ids=ids(1, LONG)).last_hidden_state.square().sum().backward()
        optimizer.step()
        assert not torch.equal(table_of(model)(torch.tensor([LONG - 1])), before)

    def test_buffers_are_on_the_models_device(self):
        model = make("roberta").to("meta")
        stretch_positions(model, LONG)
        assert {b.device.type for b in model.buffers()} == {"meta"}


class TestStretchingAgain:
    def test_from_the_same_trained_vectors(self):
        model, once = make("roberta"), make("roberta")
        parameter = table_of(model).weight
        for length in (10, LONG, 12):
            stretch_positions(model, length)
            assert table_of(model).weight is parameter
            assert table_of(model).max_length == length
            assert model.config.max_position_embeddings == length + 2
            assert model.config.longarc["positions"]["max_length"] == length
        stretch_positions(once, 12)
        assert torch.equal(
            model(input_ids=ids(1, 12)).last_hidden_state,
            once(input_ids=ids(1, 12)).last_hidden_state,
        )

    def test_other_records_are_kept(self):
        model = make("bert")
        model.config.longarc = {"attention": {"name": "performer"}}
        given = model.config.longarc
        stretch_positions(model, LONG)
        assert list(model.config.longarc) == ["attention", "positions"]
        assert given == {"attention": {"name": "performer"}}

    @pytest.mark.parametrize("method", METHODS)
    def test_the_present_length_changes_nothing_but_the_tokenizer(self, method, tokenizer):
        model = make("bert")
        before = snapshot(model)
        stretch_positions(model, N, method=method, tokenizer=tokenizer)
        assert_unchanged(model, before)
        assert tokenizer.model_max_length == N


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "b"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(3)  # as in sentence-transformers' files
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=N
    )


def test_the_tokenizer_follows(tokenizer, tmp_path):
    stretch_positions(make("roberta"), LONG, tokenizer=tokenizer)
    assert tokenizer.model_max_length == LONG  # tokens, not rows
    assert len(tokenizer("a b " * 50, truncation=True)["input_ids"]) == LONG
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path).model_max_length == LONG


class TestWhereTheModelIs:
    def test_in_a_module_of_ones_own(self):
        class Twin(nn.Module):
            def __init__(self):
                super().__init__()
                self.left = self.right = make("bert")  # one encoder under two names

        twin = Twin()
        assert stretch_positions(twin, LONG) is twin
        assert twin.left(input_ids=ids(1, LONG)).last_hidden_state.shape == (1, LONG, 16)

    def test_two_encoders_are_stretched_one_by_one(self):
        pair = nn.ModuleDict({"query": make("bert"), "document": make("roberta")})
        with pytest.raises(ModelError, match=r"2 tables of positions \(BertModel, RobertaModel\)"):
            stretch_positions(pair, LONG)
        stretch_positions(pair["document"], LONG)
        assert pair["query"].config.max_position_embeddings == N

    def test_padding_rows_follow_the_pad_token(self):
        """A RoBERTa whose padding is token 0 has one row for it, not two."""
        model = make("roberta", pad_token_id=0, max_position_embeddings=N + 1)
        stretch_positions(model, LONG)
        assert table_of(model).trained == N
        assert model.config.max_position_embeddings == LONG + 1
        assert model(input_ids=ids(1, LONG)).last_hidden_state.shape == (1, LONG, 16)


class TestRefusals:
    @pytest.mark.parametrize(
        ("length", "options", "message"),
        [
            (N - 1, {}, r"max_length is 5, but the model reads 6 tokens as it is\. Name a greater"),
            (N - 1, {"method": "copy"}, "reads 6 tokens as it is"),
            (N * N + 1, {}, "6 trained positions give at most 6² = 36"),
            (0, {}, "max_length must be a whole number, at least 1; found 0"),
            (23.0, {}, r"found 23\.0 \(float\)"),
            ("23", {}, "found '23'"),
            (True, {}, "found True"),
            (None, {}, "found None"),
            (LONG, {"alpha": 0.5}, r"alpha must not be 0\.5.*position 2 of block 1"),
            (LONG, {"alpha": 0}, "alpha must be above 0"),
            (LONG, {"alpha": 1.0}, "alpha must be a finite number, at least 0 and below 1"),
            (LONG, {"alpha": -0.1}, "alpha must be"),
            (LONG, {"alpha": float("nan")}, "alpha must be"),
            (LONG, {"alpha": "0.4"}, "alpha must be"),
            (LONG, {"method": "hierarchicall"}, r"no method 'hierarchicall'\. Did you mean hier"),
            (LONG, {"method": None}, "no method None"),
            (
                LONG,
                {"method": "copy", "alpha": 0.4},
                "alpha would change nothing with method 'copy'",
            ),
            (
                LONG,
                {"method": "interpolate", "alpha": 0.3, "origin": 2},
                "Leave out alpha and orig",
            ),
            (LONG, {"tokenizer": "bert"}, "tokenizer must be a transformers tokenizer; found str"),
        ],
    )
    def test_options(self, length, options, message):
        model = make("bert")
        before = snapshot(model)
        with pytest.raises(OptionError, match=message):
            stretch_positions(model, length, **options)
        assert_unchanged(model, before)

    @pytest.mark.parametrize(
        ("length", "options", "message"),
        [
            (LONG, {}, r"stretched with alpha=0\.3.*alpha=0\.4 would change.*Pass alpha=0\.3"),
            (LONG, {"alpha": 0.3, "method": "copy"}, r"hierarchically to 12\. Open the model bef"),
            (LONG, {"alpha": 0.3, "method": "interpolate"}, "to use method 'interpolate'"),
            (N - 1, {"alpha": 0.3}, "has 6 trained positions"),
            (N * N + 1, {"alpha": 0.3}, "at most 6² = 36"),
        ],
    )
    def test_what_does_not_go_with_an_earlier_stretch(self, length, options, message, tokenizer):
        model = stretch_positions(make("bert"), 12, alpha=0.3)
        before = snapshot(model)
        with pytest.raises(OptionError, match=message):
            stretch_positions(model, length, tokenizer=tokenizer, **options)
        assert_unchanged(model, before)
        assert tokenizer.model_max_length == N

    @pytest.mark.parametrize(
        ("kind", "own", "message"),
        [
            ("modernbert", {"pad_token_id": 0}, "modernbert has rotary positions.*rope_parameters"),
            ("roformer", {}, "roformer has rotary positions"),
            ("nomic_bert", {}, "nomic_bert has rotary positions"),
            ("eurobert", {}, "eurobert has rotary positions"),
            ("llama", {}, "llama has rotary positions"),
            ("deberta-v2", {}, "deberta-v2 has relative positions"),
            ("t5", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
             "t5 has relative positions"),
            ("longformer", {"attention_window": 4}, "longformer was made for long documents"),
            ("fnet", {}, "does not know how fnet keeps its positions.*Positions can be .*: bert,"),
        ],
    )  # fmt: skip
    def test_other_families(self, kind, own, message):
        from transformers import AutoConfig, AutoModel

        sizes = SIZES | {"pad_token_id": 1} | own
        for name in ("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"):
            sizes.setdefault(name, 2)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
        before = snapshot(model)
        with pytest.raises(ModelError, match=message):
            stretch_positions(model, 1000)
        assert_unchanged(model, before)

    def test_the_reason_is_the_encoders_and_not_the_heads(self):
        from transformers import ModernBertConfig, ModernBertModel

        special = {f"{name}_token_id": 1 for name in ("pad", "bos", "cls", "eos", "sep")}
        encoder = ModernBertModel(ModernBertConfig(**SIZES, **special))
        with pytest.raises(ModelError, match="modernbert has rotary positions"):
            stretch_positions(from_encoder(encoder, num_labels=2), LONG)

    def test_parts_and_other_things(self):
        with pytest.raises(ModelError, match="no transformers model in it"):
            stretch_positions(nn.Linear(2, 2), LONG)
        with pytest.raises(OptionError, match="must be a PyTorch module; found str"):
            stretch_positions("bert", LONG)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ModelError, match="no transformers model in it"):
            stretch_positions(make("bert").embeddings, LONG)

    def test_a_table_that_another_tool_replaced(self):
        model = make("bert")
        model.embeddings.position_embeddings = nn.Identity()
        with pytest.raises(ModelError, match="positions are a Identity"):
            stretch_positions(model, LONG)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"method": "copy"}, "expected method 'hierarchical'"),
            ({"trained": N + 1}, "is of 7 trained positions, but the model has 6"),
            ({"alpha": 0.5}, "does not fit: alpha must not be"),
            ({"max_length": 37}, "does not fit: max_length is 37"),
            ({"max_length": "23"}, "does not fit: max_length must be"),
        ],
    )
    def test_records_that_are_not_the_models(self, change, message):
        record = {
            "method": "hierarchical", "alpha": 0.4, "origin": 2, "trained": N, "max_length": LONG,
        }  # fmt: skip
        model = make("bert")
        before = snapshot(model)
        with pytest.raises(ModelError, match=message):
            restore_positions(model, record | change)
        for key in record:
            with pytest.raises(ModelError, match="expected method"):
                restore_positions(model, {k: v for k, v in record.items() if k != key})
        assert_unchanged(model, before)
