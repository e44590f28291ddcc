"""The last layer for the first token alone gives the scores and gradients of the whole layer."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("transformers", reason="needs the train extra")

from tiny_transformers import KINDS, classifier, sequences  # noqa: E402

from rankers.first_token import compute_first_token_only  # noqa: E402
from rankers.pair_scorer import ClassifierScorer, low_precision  # noqa: E402
from rankers.set_encoder import SetScorer  # noqa: E402


def last_layer(model):
    return model.base_model.encoder.layer[-1]


def gradients(model, features):
    model.zero_grad()
    logits = model(**features).logits
    (logits * torch.arange(1, logits.numel() + 1).view_as(logits)).sum().backward()
    return logits.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [[7, 4, 9], [6, 6], [3]], ids=["padded", "of one length", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_the_whole_layer(kind, lengths, attention):
    whole = classifier(kind, labels=2)
    whole.set_attn_implementation(attention)
    reduced = copy.deepcopy(whole)
    compute_first_token_only(reduced)
    features = sequences(lengths)
    expected, found = gradients(whole, features), gradients(reduced, features)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_only_first_tokens_meet_the_last_feed_forward():
    model = classifier()
    shapes = []
    for layer in model.base_model.encoder.layer:
        layer.intermediate.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    ClassifierScorer(model)(sequences([7, 4, 9]))
    assert shapes == [(3, 9, 32), (3, 9, 32), (3, 1, 32)]


def test_feed_forward_in_pieces_is_the_same():
    model = classifier(chunk_size_feed_forward=1)
    features = sequences([7, 4, 9])
    with torch.no_grad():
        expected = model(**features).logits[:, 0]
        torch.testing.assert_close(ClassifierScorer(model)(features), expected, rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_and_is_repeatable():
    model = classifier(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    scorer, features = ClassifierScorer(model), sequences([7, 4, 9])

    def scores(seed):
        torch.manual_seed(seed)
        return scorer.train()(features).tolist()

    assert scores(0) == scores(0)
    assert scores(0) != scores(1)
    same_below = last_layer(model).register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]), *args[1:]))
    assert scores(0) != scores(1), "the last layer alone drops too"
    same_below.remove()


def test_a_copy_computes_with_its_own_weights():
    scorer = ClassifierScorer(classifier())
    features = sequences([7, 4])
    with torch.no_grad():
        low = low_precision(scorer)
        before = low(features).tolist()
        for weight in last_layer(scorer.transformer).parameters():
            weight.zero_()
        assert low(features).tolist() == before
        assert scorer(features).tolist() != pytest.approx(before, abs=1e-3)


def test_a_model_that_reads_from_left_to_right_keeps_its_layer():
    model = classifier(is_decoder=True)
    compute_first_token_only(model)
    assert "forward" not in vars(last_layer(model))


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 0, 2]], ids=str)
@pytest.mark.parametrize("lengths", [[7, 4, 9, 5], [6, 6, 6, 6]], ids=["padded", "of one length"])
def test_documents_of_a_list_share_the_same_states(lengths, sizes):
    scorer, features = SetScorer(classifier()), sequences(lengths)
    with torch.no_grad():
        found = scorer(features, sizes)
        del last_layer(scorer.transformer).forward
        torch.testing.assert_close(found, scorer(features, sizes), rtol=1e-5, atol=1e-6)
