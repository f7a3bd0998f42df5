from __future__ import annotations

import numpy as np
import pytest
import torch

from longarc.data.lengths import LONGEST_TEXT
from longarc.training.prediction import Predictor, confidence, decisions, probabilities


@pytest.fixture(scope="module")
def model(tiny):
    # Weights of size 1, not BERT's 0.02: what is near 0 everywhere would hide a difference.
    model = tiny.make_model(dropout=0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
        model.classifier.bias.normal_()
    return model.train()


@pytest.fixture(scope="module")
def texts(tiny):
    return [*tiny.make_table(40)[0], "", "zzz?!", "oil " * 300]


def predictor(model, tokenizer, **options):
    return Predictor(model, tokenizer, max_length=48, **options)


@pytest.fixture(scope="module")
def expected(model, tokenizer, texts):
    """One text at a time, without any padding, in plain transformers."""
    model.eval()
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].numpy())
    model.train()
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_predictions_do_not_depend_on_the_batch(model, tokenizer, texts, expected, batch_size):
    found = predictor(model, tokenizer, batch_size=batch_size).logits(texts)
    assert found.dtype == np.float32
    assert np.ptp(expected, axis=0).min() > 0.1, "the texts must differ"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_predictions_do_not_depend_on_the_order(model, tokenizer, texts, expected):
    order = np.random.default_rng(0).permutation(len(texts))
    found = predictor(model, tokenizer, batch_size=4).logits([texts[i] for i in order])
    np.testing.assert_allclose(found, expected[order], rtol=0, atol=1e-5)


def test_more_texts_than_a_chunk(model, tokenizer, texts, expected):
    """Two batches to a chunk would do for a bug; 64 batches of 1 make the first cut at 64."""
    found = predictor(model, tokenizer, batch_size=1).logits(texts * 2)
    np.testing.assert_allclose(found, np.concatenate([expected, expected]), rtol=0, atol=1e-5)


def test_no_texts(model, tokenizer):
    made = predictor(model, tokenizer)
    assert made.logits([]).shape == (0, 3)
    assert made.features([]).shape == (0, 32)


def test_features_are_what_enters_the_last_layer(model, tokenizer, texts, expected):
    features = predictor(model, tokenizer, batch_size=5).features(texts)
    assert features.shape == (len(texts), 32)
    weight, bias = (p.detach().numpy() for p in model.classifier.parameters())
    np.testing.assert_allclose(features @ weight.T + bias, expected, rtol=0, atol=2e-5)


def test_a_text_beyond_the_longest_is_read_as_its_beginning(model, tokenizer):
    text = "oil leak " * (LONGEST_TEXT // 9 + 10)
    made = predictor(model, tokenizer)
    np.testing.assert_array_equal(made.logits([text]), made.logits([text[:LONGEST_TEXT]]))


def test_progress_and_the_training_mode_are_kept(model, tokenizer, texts):
    done = []
    model.train()
    predictor(model, tokenizer, batch_size=8).logits(texts, done.append)
    assert sum(done) == len(texts)
    assert model.training
    with pytest.raises(TypeError):
        predictor(model, tokenizer).logits([None])
    assert model.training


def test_bfloat16_gives_float32_near_the_exact(model, tokenizer, texts, expected):
    found = predictor(model, tokenizer, bf16=True).logits(texts)
    assert found.dtype == np.float32
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    assert not np.array_equal(found, expected)


@pytest.mark.real
def test_the_real_encoder_does_not_depend_on_the_batch(minilm, tiny):
    from longarc.models.loading import load_classifier

    torch.manual_seed(0)
    model = load_classifier("minilm", labels=("a", "b", "c"))
    texts = tiny.make_table(8)[0]
    one, many = (
        Predictor(model, minilm[1], max_length=64, batch_size=size).logits(texts) for size in (1, 8)
    )
    np.testing.assert_allclose(one, many, rtol=0, atol=1e-5)


def test_probabilities_decisions_and_confidence():
    logits = np.array([[2.0, -1.0, 0.0], [-1000.0, 1000.0, 0.0]], dtype=np.float32)
    single = probabilities(logits, multi_label=False)
    reference = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    np.testing.assert_allclose(single, reference, rtol=1e-12)
    several = probabilities(logits, multi_label=True)
    reference = torch.sigmoid(torch.from_numpy(logits).double()).numpy()
    np.testing.assert_allclose(several, reference, rtol=1e-12)
    assert decisions(logits, multi_label=False).tolist() == [0, 1]
    assert decisions(logits, multi_label=True).tolist() == [[1, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(confidence(single, multi_label=False), single.max(axis=1))
    assert confidence(several, multi_label=True)[0] == pytest.approx(
        (several[0, 0] + (1 - several[0, 1]) + 0.5) / 3
    )
