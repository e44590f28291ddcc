"""Scores of sequences: which logit they are, in which precision, and what is refused."""

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("transformers", reason="needs the train extra")

from tiny_transformers import KINDS, WORDS, classifier, sequences, t5_config  # noqa: E402
from transformers import AutoModelForSequenceClassification, T5EncoderModel, T5ForConditionalGeneration  # noqa: E402

from rankers.pair_scorer import (  # noqa: E402
    ClassifierScorer,
    EncoderDecoderScorer,
    EncoderScorer,
    Float32Linear,
    low_precision,
)


def t5(kind, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(t5_config()).eval()


def scorers():
    return {
        "classifier": ClassifierScorer(classifier()),
        "two labels": ClassifierScorer(classifier(labels=2)),
        "first": EncoderScorer(t5(T5EncoderModel), "first"),
        "mean": EncoderScorer(t5(T5EncoderModel), "mean"),
        "encoder_decoder": EncoderDecoderScorer(t5(T5ForConditionalGeneration), 11),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_label_is_the_score(kind):
    model = classifier(kind)
    features = sequences([7, 4, 9])
    with torch.no_grad():
        expected = model(**features).logits[:, 0]
        found = ClassifierScorer(model)(features)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_of_two_labels_the_score_is_the_difference():
    model = classifier(labels=2)
    features = sequences([7, 4, 9])
    with torch.no_grad():
        logits = model(**features).logits
        found = ClassifierScorer(model)(features)
    assert found.tolist() == pytest.approx((logits[:, 1] - logits[:, 0]).tolist(), abs=1e-5)
    assert torch.sigmoid(found).tolist() == pytest.approx(logits.softmax(dim=1)[:, 1].tolist())


def test_the_encoder_pools_and_projects():
    model = t5(T5EncoderModel)
    features = sequences([7, 4, 9])
    with torch.no_grad():
        states = model(**features).last_hidden_state
        for pooling in ("first", "mean"):
            scorer = EncoderScorer(model, pooling)
            pooled = [
                row[0] if pooling == "first" else row[:n].mean(0) for row, n in zip(states, [7, 4, 9], strict=True)
            ]
            expected = [float(row @ scorer.head.weight[0] + scorer.head.bias[0]) for row in pooled]
            assert scorer(features).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_decoder_gives_one_tokens_logit_at_its_first_step():
    model = t5(T5ForConditionalGeneration)
    features = sequences([7, 4, 9])
    with torch.no_grad():
        found = EncoderDecoderScorer(model, 11)(features)
        logits = model(**features, labels=torch.full((3, 1), 11)).logits  # labels are shifted: the start token goes in
    assert found.tolist() == pytest.approx(logits[:, 0, 11].tolist(), abs=1e-6)


@pytest.mark.parametrize("name", scorers())
def test_padding_changes_no_score_and_gradients_reach_every_weight(name):
    scorer = scorers()[name]
    narrow, wide = sequences([7, 4, 9]), sequences([7, 4, 9], width=20)
    found = scorer(narrow)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(scorer(wide).tolist(), abs=1e-5)
    assert scorer(narrow, [2, 1]).tolist() == found.tolist()  # these score each pair alone
    found.sum().backward()
    untouched = [name for name, weight in scorer.named_parameters() if weight.grad is None]
    assert untouched == []


@pytest.mark.parametrize("name", scorers())
def test_the_output_layer_computes_in_float32(name):
    """Under autocast and in a bf16 copy the scores are not rounded to bf16's 8 bits."""
    scorer = scorers()[name]
    features = sequences([7, 4, 9, 6, 5, 8, 3, 10])
    low = low_precision(scorer)
    with torch.no_grad():
        exact = scorer(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = scorer(features)
        copied = low(features)
    for found in (autocast, copied):
        assert found.dtype == torch.float32
        assert (found.bfloat16().float() != found).any()
        assert (found - exact).abs().max() < 0.2 * max(1, exact.abs().max())


@pytest.mark.parametrize("name", scorers())
def test_a_bf16_copy_leaves_the_scorer_as_it_is(name):
    scorer = scorers()[name]
    before = {name: weight.clone() for name, weight in scorer.state_dict().items()}
    low = low_precision(scorer)
    heads = [module for module in low.modules() if isinstance(module, Float32Linear)]
    assert len(heads) == 1
    assert all(weight.dtype == torch.float32 for weight in heads[0].parameters())
    others = set(low.parameters()) - set(heads[0].parameters())
    assert {weight.dtype for weight in others} == {torch.bfloat16}
    after = scorer.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_what_gives_no_score_is_refused():
    with pytest.raises(ValueError, match=r"has 3 labels; wanted 1 .* or 2"):
        ClassifierScorer(classifier(labels=3))
    with pytest.raises(ValueError, match="unknown pooling 'max'; wanted one of first, mean"):
        EncoderScorer(t5(T5EncoderModel), "max")
    with pytest.raises(ValueError, match=f"is 50; the model has {WORDS} tokens"):
        EncoderDecoderScorer(t5(T5ForConditionalGeneration), 50)


def test_settings_are_what_loads_the_same_scorer_again():
    found = {name: (scorer.architecture, scorer.settings()) for name, scorer in scorers().items()}
    assert found == {
        "classifier": ("classifier", {}),
        "two labels": ("classifier", {}),
        "first": ("encoder", {"pooling": "first"}),
        "mean": ("encoder", {"pooling": "mean"}),
        "encoder_decoder": ("encoder_decoder", {"token_id": 11}),
    }


def test_a_t5_sequence_classifier_ends_in_its_output_layer_too():
    config = t5_config()
    config.num_labels = 1
    scorer = ClassifierScorer(AutoModelForSequenceClassification.from_config(config).eval())
    assert isinstance(scorer.transformer.classification_head.out_proj, Float32Linear)
