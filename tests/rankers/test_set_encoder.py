"""The Set-Encoder: no order, yet every document sees the others; what is masked and padded changes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("transformers", reason="needs the train extra")

from tiny_transformers import KINDS, classifier, rows, sequences  # noqa: E402

from rankers.pair_scorer import ClassifierScorer, low_precision  # noqa: E402
from rankers.set_encoder import SetScorer, interaction, novelty_labels, sharing_attention  # noqa: E402


@pytest.fixture(scope="module")
def scorer():
    return SetScorer(classifier())


def scores(scorer, features, sizes):
    with torch.no_grad():
        return scorer(features, sizes)


def close(found, expected, tolerance=1e-5):
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance


# --- what the paper promises ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_reordered_list_are_the_reordered_scores(kind):
    scorer = SetScorer(classifier(kind))
    features = sequences([9, 4, 12, 7, 7])
    order = [3, 0, 4, 2, 1]
    before = scores(scorer, features, [5])
    close(scores(scorer, rows(features, order), [5]), before[order])
    assert before.std() > 0.01  # they differ, so that an order could be lost


@given(
    st.lists(st.integers(3, 15), min_size=1, max_size=7),
    st.integers(0, 99),
    st.sampled_from([None, 2, 9]),
    st.randoms(use_true_random=False),
)
def test_any_order_of_any_list(scorer, lengths, seed, set_size, random):
    scorer = SetScorer(scorer.transformer, set_size=set_size)
    features = sequences(lengths, seed=seed)
    order = list(range(len(lengths)))
    random.shuffle(order)
    close(scores(scorer, rows(features, order), [len(order)]), scores(scorer, features, [len(order)])[order])


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_changes_the_scores_of_the_others(kind):
    scorer = SetScorer(classifier(kind))
    features = sequences([8, 8, 8])
    before = scores(scorer, features, [3])
    features["input_ids"][2, 4:] = 7
    after = scores(scorer, features, [3])
    assert ((after - before).abs() > 1e-4).all()


def test_a_document_of_another_list_changes_nothing(scorer):
    features = sequences([8, 8, 8, 8])
    before = scores(scorer, features, [2, 2])
    features["input_ids"][2:, 4:] = 7
    after = scores(scorer, features, [2, 2])
    close(after[:2], before[:2], 1e-6)
    assert ((after[2:] - before[2:]).abs() > 1e-4).all()


def test_only_the_interaction_states_are_shared():
    """In one layer, [INT] is its own word and position: what else the other document holds is not seen."""
    scorer = SetScorer(classifier(num_hidden_layers=1))
    features = sequences([8, 8])
    before = scores(scorer, features, [2])
    features["input_ids"][1, 4:] = 7
    after = scores(scorer, features, [2])
    close(after[:1], before[:1], 1e-6)
    assert abs(after[1] - before[1]) > 1e-4
    features["input_ids"][1, 1] = 7
    assert abs(scores(scorer, features, [2])[0] - before[0]) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_one_document_is_a_plain_cross_encoder(kind):
    features = sequences([9, 5, 7])
    plain = ClassifierScorer(classifier(kind))
    scorer = SetScorer(classifier(kind))
    expected = scores(plain, features, None)
    close(scores(scorer, features, [1, 1, 1]), expected)
    close(scores(scorer, features, None), expected)


def test_with_the_interaction_masked_it_is_a_plain_cross_encoder(scorer, monkeypatch):
    features = sequences([9, 5, 7])

    def blind(sizes, **settings):
        found = interaction(sizes, **settings)
        return found._replace(where=torch.zeros_like(found.where))

    seeing = scores(scorer, features, [3])
    monkeypatch.setattr("rankers.set_encoder.interaction", blind)
    masked = scores(scorer, features, [3])
    close(masked, scores(scorer, features, None))
    assert (masked - seeing).abs().max() > 1e-3


# --- lists that are longer or shorter than in training -------------------------------------------------------------


def test_a_list_of_the_set_size_is_scored_by_the_papers_formula(scorer):
    features = sequences([9, 5, 7, 6])
    sized = SetScorer(scorer.transformer, set_size=4)
    close(scores(sized, features, [4]), scores(scorer, features, [4]), 1e-6)
    assert (scores(sized, features, [2, 2]) - scores(scorer, features, [2, 2])).abs().max() > 1e-4
    assert sized.settings() == {"set_size": 4}
    assert scorer.settings() == {}


@pytest.mark.parametrize("set_size", [2, 8])
def test_copies_of_the_other_document_do_not_shout_it_down(set_size):
    """In one layer, n - 1 equal others are one other of the same weight; without a set size they are not."""
    transformer = classifier(num_hidden_layers=1)
    first, other = rows(sequences([8, 8]), [0]), rows(sequences([8, 8]), [1])

    def score(copies, size):
        features = {name: torch.cat([values, *[other[name]] * copies]) for name, values in first.items()}
        return float(scores(SetScorer(transformer, set_size=size), features, [1 + copies])[0])

    assert score(5, set_size) == pytest.approx(score(1, set_size), abs=1e-6)
    assert abs(score(5, None) - score(1, None)) > 1e-4


def test_weights_by_hand():
    found = interaction([3, 1, 0, 2], set_size=5)
    assert found.offsets.exp().tolist() == pytest.approx([2, 2, 2, 4, 4, 4])  # 4/2, alone: no others, 4/1
    assert interaction([3, 1]).offsets.tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="set_size must be at least 2 documents, got 1"):
        SetScorer(classifier(), set_size=1)


# --- batches and padding -------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(3, 12), max_size=5), min_size=1, max_size=4).filter(any))
def test_lists_in_one_batch_score_as_each_alone(scorer, lists):
    lengths = [length for lengths in lists for length in lengths]
    features = sequences(lengths, width=15)  # and padding behind the longest sequence
    together = scores(scorer, features, [len(lengths) for lengths in lists])
    start = 0
    for lengths in lists:
        if lengths:
            members = list(range(start, start + len(lengths)))
            alone = {name: values[:, : max(lengths)] for name, values in rows(features, members).items()}
            close(together[members], scores(scorer, alone, [len(lengths)]))
            start += len(lengths)


def test_the_gradient_reaches_the_other_documents(scorer):
    vectors = scorer.transformer.get_input_embeddings()
    features = sequences([6, 6, 6])
    embedded = vectors(features["input_ids"]).detach().requires_grad_()
    shared = interaction([2, 1])
    logits = scorer.transformer(
        inputs_embeds=embedded, attention_mask=features["attention_mask"], interaction=shared
    ).logits
    logits[0, 0].backward()
    reached = embedded.grad.abs().sum(dim=(1, 2))
    assert reached[0] > 0
    assert reached[1] > 0
    assert reached[2] == 0


def test_who_sees_whom():
    found = interaction([2, 0, 3])
    assert found.others.tolist() == [[0, 1, 0], [0, 1, 0], [2, 3, 4], [2, 3, 4], [2, 3, 4]]
    seen = [others[where].tolist() for others, where in zip(found.others, found.where, strict=True)]
    assert seen == [[1], [0], [3, 4], [2, 4], [2, 3]]
    assert interaction([]).others.shape == (0, 0)


def test_attention_by_hand():
    """Two sequences of two tokens, one head of one dimension, all logits 0 except those of masked keys."""
    seen = {}

    def average(module, query, key, value, mask, **kwargs):
        seen.update(kwargs)
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)) + mask, dim=-1)
        return torch.matmul(weights, value), weights

    states = torch.zeros(2, 1, 2, 1)
    values = torch.tensor([[1.0, 2.0], [10.0, 20.0]]).view(2, 1, 2, 1)
    found, _ = sharing_attention(average)(None, states, states, values, None, interaction([2]), scaling=1.0)
    # Each token sees its own sequence and the second value of the other: (1 + 2 + 20) / 3 and (10 + 20 + 2) / 3.
    assert found.flatten().tolist() == pytest.approx([23 / 3, 23 / 3, 32 / 3, 32 / 3])
    assert seen == {"scaling": 1.0}
    masked = torch.zeros(2, 1, 2, 2)
    masked[0, :, :, 1] = torch.finfo(torch.float32).min
    found, _ = sharing_attention(average)(None, states, states, values, masked, interaction([2]))
    assert found.flatten().tolist() == pytest.approx([21 / 2, 21 / 2, 32 / 3, 32 / 3])


def test_training_attention_gives_the_same_scores(scorer):
    """The attention of transformers that is extended is whichever is registered under the name."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def slow(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)) * scaling + attention_mask, dim=-1)
        return torch.matmul(weights, value).transpose(1, 2), weights

    AttentionInterface.register("test_slow", slow)
    features = sequences([9, 5, 7, 4])
    expected = scores(scorer, features, [3, 1])
    other = SetScorer(classifier(), attention="test_slow")
    close(scores(other, features, [3, 1]), expected)
    other.use_attention("sdpa")
    close(scores(other, features, [3, 1]), expected, 1e-6)
    assert sdpa_attention_forward is AttentionInterface()["sdpa"]  # it is extended under another name


def test_bf16_copy_is_near(scorer):
    features = sequences([9, 5, 7, 4])
    low = scores(low_precision(scorer), features, [4])
    close(low, scores(scorer, features, [4]), 0.1)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_sizes_must_fit(scorer):
    with pytest.raises(ValueError, match="got 3 sequences for lists that hold 4"):
        scorer(sequences([5, 5, 5]), [2, 2])


def test_other_encoders_are_refused():
    from transformers import AutoModelForSequenceClassification, DistilBertConfig

    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=1)
    with pytest.raises(ValueError, match=r"needs an encoder of type bert, .*; this one is distilbert"):
        SetScorer(AutoModelForSequenceClassification.from_config(config))


# --- labels for novelty --------------------------------------------------------------------------------------------


def test_in_a_group_of_duplicates_only_the_best_keeps_its_grade():
    grades = [3, 1, 2, 2, 1, 0]
    groups = [0, 0, 1, 1, -1, -1]
    assert novelty_labels(grades, groups).tolist() == [3, 0, 2, 0, 1, 0]
    assert novelty_labels([1.0, 2.0], [-1, -1]).tolist() == [1, 2]
    assert novelty_labels([], []).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3)), max_size=12))
def test_novelty_keeps_the_best_of_each_group(pairs):
    grades = np.array([grade for grade, _ in pairs], dtype=np.float32)
    groups = np.array([group for _, group in pairs], dtype=np.int64)
    labels = novelty_labels(grades, groups)
    assert (labels[groups < 0] == grades[groups < 0]).all()
    for group in set(groups[groups >= 0].tolist()):
        kept = labels[groups == group]
        assert kept.max() == kept.sum() == grades[groups == group].max()
    assert novelty_labels(labels, groups).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("grades", "groups", "message"),
    [
        ([1, 2], [0], r"grades of shape \(2,\) and groups of \(1,\)"),
        ([[1]], [[0]], r"grades of shape \(1, 1\)"),
        ([1, -1], [0, 0], "finite and >= 0"),
        ([1, np.nan], [0, 0], "finite and >= 0"),
        ([1, 2], [0.5, 0.5], "whole numbers, got float64"),
    ],
)
def test_novelty_refuses(grades, groups, message):
    with pytest.raises(ValueError, match=message):
        novelty_labels(grades, groups)
