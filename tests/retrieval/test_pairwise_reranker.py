"""A pairwise model as a reranker: what a duel says, what a tournament makes of it, and what it costs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_files import documents, queries
from tiny_rerankers import make_classifier, make_t5

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("sentence_transformers", reason="needs the train extra")

from rankers.tournaments import STRATEGIES  # noqa: E402
from retrieval.cross_encoder import CrossEncoder  # noqa: E402
from retrieval.errors import InputError  # noqa: E402
from retrieval.pairwise_reranker import PairwiseReranker  # noqa: E402
from retrieval.reranking import Reranker, load_reranker  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [f"{d['title']} {d['text']}" for d in documents()]
QUERIES = list(queries().values())[:3]
PLAIN = {"precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_model):
    """A plain classifier with one label."""
    return make_classifier(tmp_path_factory.mktemp("pairwise") / "one", f"{tiny_model}-bert")


@pytest.fixture(scope="module")
def reader(start):
    found = CrossEncoder.load(start, architecture="pairwise", **PLAIN)
    with torch.no_grad():  # far from a tie
        torch.nn.init.normal_(found.model.transformer.classifier.weight, generator=torch.Generator().manual_seed(1))
    return found


class Counting:
    """Counts the sequences that the model reads."""

    def __init__(self, monkeypatch, reader):
        self.sequences, infer = 0, reader.infer

        def counted(tokens, sizes=None):
            self.sequences += len(tokens)
            return infer(tokens, sizes)

        monkeypatch.setattr(reader, "infer", counted)


def test_a_duel_is_the_antisymmetrised_difference_of_the_two_scores(reader):
    query, a, b = QUERIES[0], TEXTS[0], TEXTS[9]
    tokenizer, model = reader.pairs.tokenizer, reader.model.transformer
    margins = []
    for first, second in ((a, b), (b, a)):
        ids = tokenizer(query, first)["input_ids"] + tokenizer(second, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*ids, tokenizer.sep_token_id]])
        segments = (torch.arange(ids.shape[1]) >= len(tokenizer(query)["input_ids"])).long()[None]
        with torch.no_grad():
            left, right = model(input_ids=ids, token_type_ids=segments).logits[0].double().tolist()
        margins.append(left - right)
    expected = 1 / (1 + np.exp(-(margins[0] - margins[1]) / 2))
    found = PairwiseReranker(reader).better([query], [a], [b])
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert abs(expected - 0.5) > 1e-3


@given(st.lists(st.tuples(*[st.integers(0, len(TEXTS) - 1)] * 2), min_size=1, max_size=6))
def test_the_reverse_order_is_the_reverse_answer(reader, pairs):
    ranker, asked = PairwiseReranker(reader), [QUERIES[0]] * len(pairs)
    firsts, seconds = ([TEXTS[pair[side]] for pair in pairs] for side in (0, 1))
    found, reverse = ranker.better(asked, firsts, seconds), ranker.better(asked, seconds, firsts)
    assert np.abs(found + reverse - 1).max() <= 1e-6
    for (one, other), answer in zip(pairs, found, strict=True):
        assert one != other or answer == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_scores_every_document_and_costs_two_sequences_a_duel(reader, monkeypatch, strategy):
    ranker, counted = PairwiseReranker(reader, strategy=strategy, top=3), Counting(monkeypatch, reader)
    lists = [TEXTS[:7], [], TEXTS[7:8]]
    found = ranker.score(QUERIES, lists)
    assert [scores.shape for scores in found] == [(7,), (0,), (1,)]
    assert all(scores.dtype == np.float32 and np.isfinite(scores).all() for scores in found)
    spent = counted.sequences
    assert spent == 2 * ranker.rank(QUERIES[0], lists[0]).calls
    if strategy in ("max_logits", "max_wins", "bradley_terry"):
        assert spent == 7 * 6
    if strategy in ("knockout", "bubble"):
        assert spent == 2 * 6
    if strategy == "heap":
        assert 2 * 6 <= spent < 2 * (7 + 3 * 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_have_the_order_of_the_tournament(reader, strategy):
    """In knockout the rounds survived tie, and the order says who lost to whom."""
    ranker = PairwiseReranker(reader, strategy=strategy)
    (scores,) = ranker.score(QUERIES[:1], [TEXTS[:8]])
    assert np.argsort(-scores, kind="stable").tolist() == ranker.rank(QUERIES[0], TEXTS[:8]).order.tolist()


def test_the_order_of_the_documents_changes_no_order_of_all_pairs(reader):
    ranker = PairwiseReranker(reader, strategy="max_logits")
    turned = np.random.default_rng(0).permutation(8)
    (one,) = ranker.score(QUERIES[:1], [TEXTS[:8]])
    (two,) = ranker.score(QUERIES[:1], [[TEXTS[i] for i in turned]])
    assert np.abs(one[turned] - two).max() <= 1e-5


def test_a_budget_is_the_sequences_that_may_be_read(reader, monkeypatch):
    counted = Counting(monkeypatch, reader)
    ranking = PairwiseReranker(reader, strategy="max_logits", budget=11).rank(QUERIES[0], TEXTS[:7])
    assert counted.sequences == 10 == 2 * ranking.calls
    assert not ranking.complete


def test_batches_change_nothing(reader, monkeypatch):
    ranker = PairwiseReranker(reader, strategy="max_logits")
    whole = ranker.score(QUERIES, [TEXTS[:6]] * 3)
    monkeypatch.setattr(reader, "batch_tokens", 70)
    for ours, theirs in zip(ranker.score(QUERIES, [TEXTS[:6]] * 3), whole, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_opened_as_a_reranker_that_gives_the_same_scores(reader, tmp_path):
    reader.save(tmp_path / "saved")
    ranker = load_reranker(tmp_path / "saved", strategy="sort", top=4, **PLAIN)
    assert isinstance(ranker, Reranker)
    expected = PairwiseReranker(reader, strategy="sort", top=4).score(QUERIES, [TEXTS[:9]] * 3)
    for ours, theirs in zip(ranker.score(QUERIES, [TEXTS[:9]] * 3), expected, strict=True):
        assert ours.tolist() == theirs.tolist()
    known = ranker.fingerprint()
    assert (known["architecture"], known["strategy"], known["top"], known["budget"]) == ("pairwise", "sort", 4, None)
    assert load_reranker(tmp_path / "saved", **PLAIN).fingerprint() != known


def test_an_encoder_and_a_classifier_get_a_new_output_layer(start, tiny_model):
    for folder in (start, tiny_model):
        one, two, other = (
            CrossEncoder.load(folder, architecture="pairwise", seed=seed, **PLAIN).model.transformer.classifier.weight
            for seed in (0, 0, 1)
        )
        assert one.shape == (2, 32)
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_scores_of_single_documents_are_refused(reader):
    with pytest.raises(InputError, match=r"compares documents two by two; open it with retrieval\.load_reranker"):
        reader.score(QUERIES[:1], [TEXTS[:2]])


def test_what_is_not_pairwise_is_refused(start, reader, tmp_path):
    with pytest.raises(InputError, match="scores documents one by one; a tournament needs a pairwise model"):
        PairwiseReranker(CrossEncoder.load(start, **PLAIN))
    with pytest.raises(InputError, match="wanted the architecture encoder or encoder_decoder, got pairwise"):
        CrossEncoder.load(make_t5(tmp_path / "t5"), architecture="pairwise", **PLAIN)
    reader.save(tmp_path / "saved")
    with pytest.raises(InputError, match="holds the architecture pairwise; it cannot be loaded as classifier"):
        CrossEncoder.load(tmp_path / "saved", architecture="classifier", **PLAIN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "heep"}, "unknown strategy 'heep'; did you mean 'heap'"),
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"budget": 1}, "budget must be at least 2, the sequences of one duel; got 1"),
    ],
)
def test_impossible_tournaments_are_refused(reader, settings, message):
    with pytest.raises(InputError, match=message):
        PairwiseReranker(reader, **settings)


def test_texts_and_scores_are_checked(start):
    broken = CrossEncoder.load(start, architecture="pairwise", **PLAIN)
    ranker = PairwiseReranker(broken)
    with pytest.raises(InputError, match="the documents of query 0 are one string"):
        ranker.score(["a"], ["text"])
    with torch.no_grad():
        broken.model.transformer.classifier.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="gives scores that are not numbers for 'what"):
        ranker.score(["what"], [TEXTS[:3]])
