"""The scorer that reads a query and two documents at once."""

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("transformers", reason="needs the train extra")

from tiny_transformers import classifier, rows, sequences  # noqa: E402

from rankers.losses import build  # noqa: E402
from rankers.pair_scorer import Float32Linear, PairwiseScorer, low_precision  # noqa: E402


def test_its_scores_are_the_logits_of_the_two_labels():
    model = classifier(labels=2)
    features = sequences([9, 5, 7])
    with torch.no_grad():
        found = PairwiseScorer(model)(features)
        assert found.shape == (3, 2)
        assert torch.equal(found, model(**features).logits)
        assert torch.allclose(PairwiseScorer(model)(rows(features, [1, 2])), found[1:], atol=1e-6)


def test_its_scores_stay_float32_in_bf16():
    scorer = PairwiseScorer(classifier(labels=2))
    fast = low_precision(scorer)
    found = fast(sequences([9, 5]))
    assert found.dtype == torch.float32
    assert any(isinstance(module, Float32Linear) for module in fast.modules())
    assert (found - scorer(sequences([9, 5]))).abs().max() < 0.3


def test_half_of_point_ce_over_a_duel_is_pairrankers_loss():
    """½ [BCE(s_left, left is better) + BCE(s_right, right is better)], written out by torch."""
    scores = torch.tensor([[1.5, -0.5], [0.25, 2.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)
    assert torch.allclose(build("point_ce")(scores, labels) / 2, expected)
    logistic = torch.nn.functional.softplus(-(scores[:, 0] - scores[:, 1])).mean()
    assert torch.allclose(build("softmax_ce", temperature=1)(scores, labels), logistic)


@pytest.mark.parametrize(("labels", "message"), [(1, "has 1 labels; wanted 2"), (3, "has 3 labels; wanted")])
def test_a_classifier_without_two_labels_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        PairwiseScorer(classifier(labels=labels))
