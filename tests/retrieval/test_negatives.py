"""The choice of negatives: windows, margins and draws by hand; what is forbidden never comes through."""

from collections import Counter

import numpy as np
import pytest
from beir_folder import make_collection
from hypothesis import given
from hypothesis import strategies as st

from retrieval.batches import collect_judgements
from retrieval.collection import Collection
from retrieval.embedding_store import text_digests
from retrieval.errors import InputError
from retrieval.negatives import NegativeRules, PermittedDocuments, choose_places, parse_range
from retrieval.rows import TrainingRow

SCORES = [0.95, 0.9, 0.8, 0.7, 0.5, 0.4]


def ranks(positive_score=None, key="q", scores=SCORES, **rules) -> list[int]:
    """Choose among candidates whose ranks are their places; returns the ranks of the chosen."""
    found = np.array(scores, dtype=np.float64)
    places = choose_places(NegativeRules(**rules), found, np.arange(1, len(found) + 1), positive_score, key)
    return [place + 1 for place in places]


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "positive_score", "expected"),
    [
        ({}, None, [1, 2, 3, 4, 5, 6]),
        ({"first_rank": 2, "last_rank": 4}, None, [2, 3, 4]),  # both ends are in the window
        ({"first_rank": 2, "last_rank": 4, "num_negatives": 2}, None, [2, 3]),
        ({"first_rank": 7, "last_rank": 9}, None, []),
        ({"absolute_margin": 0.0}, 0.8, [3, 4, 5, 6]),  # an equal score stays
        ({"absolute_margin": 0.2}, 0.95, [4, 5, 6]),  # 0.8 > 0.95 - 0.2
        ({"relative_margin": 0.0}, 0.8, [3, 4, 5, 6]),
        ({"relative_margin": 0.5}, 0.8, [6]),  # 0.5 > 0.8 / 2
        ({"relative_margin": 1.0}, 0.8, []),
        ({"max_score": 0.7}, None, [4, 5, 6]),
        ({"absolute_margin": 0.1, "relative_margin": 0.4, "max_score": 0.45}, 0.9, [6]),
        ({"first_rank": 1, "last_rank": 2, "absolute_margin": 0.0}, 0.8, []),  # the window is not moved down
    ],
)
def test_windows_and_margins_by_hand(rules, positive_score, expected):
    assert ranks(positive_score, **rules) == expected


def test_a_relative_margin_below_a_negative_score_is_below_it():
    # (1 - r) s₊ would be -1.8 and let the second pass
    assert ranks(-2.0, scores=[-1.0, -2.05, -2.2], relative_margin=0.1) == [3]


@pytest.mark.parametrize(("margin_from", "expected"), [("lowest", 0.2), ("mean", 0.4), ("highest", 0.8), (None, 0.2)])
def test_whose_score_the_margin_is_measured_from(margin_from, expected):
    rules = NegativeRules() if margin_from is None else NegativeRules(margin_from=margin_from)
    assert rules.positive_score([0.2, 0.8, 0.2]) == pytest.approx(expected)
    assert rules.positive_score([]) is None


def test_the_first_rule_that_removes_a_candidate_is_counted():
    removed = Counter()
    rules = NegativeRules(last_rank=5, absolute_margin=0.1, relative_margin=0.2, max_score=0.6)
    # limits 0.8, 0.72 and 0.6; 0.4 is outside the window
    places = choose_places(rules, np.array(SCORES), np.arange(1, 7), 0.9, "q", removed)
    assert places == [4]
    assert removed == {"absolute_margin": 2, "relative_margin": 1, "max_score": 1}


def test_what_is_exempt_passes_margins_and_the_highest_score_but_not_the_window():
    rules = NegativeRules(last_rank=5, absolute_margin=0.1, relative_margin=0.2, max_score=0.6)
    exempt = np.array([True, False, True, False, False, True])
    removed = Counter()
    assert choose_places(rules, np.array(SCORES), np.arange(1, 7), 0.9, "q", removed, exempt) == [0, 2, 4]
    assert removed == {"absolute_margin": 1, "relative_margin": 0, "max_score": 1}


def test_ranks_may_differ_from_places():
    rules = NegativeRules(first_rank=2, last_rank=3, num_negatives=2)
    assert choose_places(rules, np.array([9.0, 8.0, 7.0, 6.0]), np.array([3, 1, 4, 2]), None, "q") == [0, 3]


@given(
    st.lists(st.floats(-5, 5, width=32), max_size=30),
    st.floats(-5, 5, width=32),
    st.integers(1, 10),
    st.integers(0, 20),
    st.sampled_from(["top", "random", "gumbel"]),
    st.sampled_from([None, 0.0, 0.3]),
    st.sampled_from([None, 0.0, 0.3]),
)
def test_every_negative_obeys_every_rule(scores, positive, first, width, sampling, absolute, relative):
    scores = sorted(scores, reverse=True)
    rules = {
        "first_rank": first,
        "last_rank": first + width,
        "num_negatives": 4,
        "absolute_margin": absolute,
        "relative_margin": relative,
        "sampling": sampling,
        "temperature": 0.5,
    }
    allowed = [
        rank
        for rank, score in enumerate(scores, start=1)
        if first <= rank <= first + width
        and (absolute is None or score <= positive - absolute)
        and (relative is None or score <= positive - relative * abs(positive))
    ]
    found = ranks(positive, scores=scores, **rules)
    assert set(found) <= set(allowed)
    assert len(found) == min(4, len(allowed))  # fewer only where there are no more
    assert found == sorted(set(found))
    if sampling == "top":
        assert found == allowed[:4]


# --- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["random", "gumbel"])
def test_a_draw_depends_on_seed_and_key_alone(sampling):
    many = [1 - place / 100 for place in range(50)]
    drawn = {
        (seed, key): tuple(ranks(key=key, scores=many, sampling=sampling, seed=seed, temperature=1.0))
        for seed in (0, 1)
        for key in ("q", "r")
    }
    assert len(set(drawn.values())) == 4
    assert drawn[0, "q"] == tuple(ranks(key="q", scores=many, sampling=sampling, seed=0, temperature=1.0))


def frequencies(sampling, temperature, scores, n=4_000) -> np.ndarray:
    rules = {"num_negatives": 1, "sampling": sampling, "temperature": temperature}
    drawn = [ranks(key=f"q{i}", scores=scores, **rules)[0] for i in range(n)]
    return np.bincount(drawn, minlength=len(scores) + 1)[1:] / n


def test_random_draws_are_uniform():
    found = frequencies("random", 0.05, [5.0, 1.0, 0.0, -3.0])
    assert np.abs(found - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 4_000)


def test_gumbel_draws_in_proportion_to_the_exponential():
    scores = np.array([0.9, 0.7, 0.6, 0.2])
    expected = np.exp(scores / 0.2) / np.exp(scores / 0.2).sum()
    assert np.abs(frequencies("gumbel", 0.2, scores) - expected).max() < 4 * np.sqrt(0.25 / 4_000)


def test_a_cold_gumbel_takes_the_best():
    assert ranks(sampling="gumbel", temperature=1e-4, num_negatives=3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"first_rank": 5, "last_rank": 2}, "the window of ranks 5:2 is empty; wanted first:last, such as 1:100"),
        ({"first_rank": 0}, "first_rank must be at least 1, got 0"),
        ({"num_negatives": 0}, "num_negatives must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"absolute_margin": -0.1}, "absolute_margin must be at least 0, got -0.1"),
        ({"absolute_margin": float("nan")}, "absolute_margin must be at least 0, got nan"),
        ({"relative_margin": 5.0}, "relative_margin must be in [0, 1], a share of the score; got 5.0"),
        ({"max_score": float("inf")}, "max_score must be a finite number, got inf"),
        ({"sampling": "tpo"}, "unknown sampling 'tpo'; did you mean 'top'?"),
        ({"margin_from": "lowst"}, "unknown margin_from 'lowst'; did you mean 'lowest'?"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)
def test_rules_out_of_range(rules, expected):
    with pytest.raises(InputError) as caught:
        NegativeRules(**rules)
    assert str(caught.value) == expected


@pytest.mark.parametrize("text", ["1:100", " 3 : 3 "])
def test_windows_as_they_are_typed(text):
    assert parse_range(text) == tuple(map(int, text.split(":")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", "--range got '10'; wanted the first and the last rank, such as 10:100"),
        ("-1:4", "--range got '-1:4'; wanted the first and the last rank, such as 10:100"),
        ("0:10", "--range got '0:10'; ranks begin at 1, as in 1:100"),
        ("5:2", "--range: the window of ranks 5:2 is empty; wanted first:last, such as 1:100"),
    ],
)
def test_a_window_that_is_none_is_named_as_the_user_typed_it(text, expected):
    with pytest.raises(InputError) as caught:
        parse_range(text, "--range")
    assert str(caught.value) == expected


def test_a_margin_needs_a_positive():
    with pytest.raises(InputError, match="query 'q': a margin is measured from the positive's score, and there is"):
        ranks(None, absolute_margin=0.1)


# --- what is forbidden -----------------------------------------------------------------------------------------------

DOCUMENTS = [
    {"_id": "good", "title": "Cats", "text": "sleep"},
    {"_id": "good-copy", "text": "Cats sleep"},  # the same once title and text are joined
    {"_id": "judged", "text": "judged elsewhere"},
    {"_id": "judged-copy", "text": "judged elsewhere"},
    {"_id": "echo", "text": "why do cats sleep"},
    {"_id": "bad", "text": "dogs bark"},
    {"_id": "bad-copy", "text": "dogs bark"},
    {"_id": "zero", "text": "judged not relevant"},
]
QUERY = "why do cats sleep"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Collection.load(make_collection(tmp_path_factory.mktemp("few") / "c", DOCUMENTS)).corpus


def allowed(corpus, rows, qrels) -> PermittedDocuments:
    digests = text_digests(corpus.texts(range(len(corpus))))
    return PermittedDocuments(corpus, rows, collect_judgements(rows, qrels), digests)


def kept(corpus, rows, qrels, order=None) -> list[str]:
    permitted = allowed(corpus, rows, qrels)
    ids = order or [document["_id"] for document in DOCUMENTS]
    mask = permitted.mask(permitted.forbidden(rows[0]), np.array([corpus.row(doc_id) for doc_id in ids]))
    return [doc_id for doc_id, is_kept in zip(ids, mask.tolist(), strict=True) if is_kept]


def test_relevant_documents_and_their_texts_are_forbidden(corpus):
    row = TrainingRow(query_id="q", query=QUERY, positive_ids=("good",))
    assert kept(corpus, [row], {"q": {"judged": 1, "zero": 0}}) == ["bad", "zero"]


def test_of_equal_texts_the_first_candidate_stays(corpus):
    row = TrainingRow(query_id="q", query=QUERY, positive_ids=("good",))
    assert kept(corpus, [row], {}, ["bad-copy", "zero", "bad"]) == ["bad-copy", "zero"]


def test_a_positive_that_is_a_text_forbids_the_document_that_says_the_same(corpus):
    row = TrainingRow(query_id="q", query="another", positives=("dogs bark",))
    assert kept(corpus, [row], {}) == ["good", "judged", "echo", "zero"]


def test_judgements_of_another_query_with_the_same_text_count(corpus):
    row = TrainingRow(query_id="q", query=QUERY, positive_ids=("good",))
    twin = TrainingRow(query_id="twin", query=QUERY, positive_ids=("bad",))
    stranger = TrainingRow(query_id="stranger", query="?", positive_ids=("zero",))
    assert kept(corpus, [row, twin, stranger], {}) == ["judged", "zero"]


def test_what_was_forbidden_is_counted_by_cause(corpus):
    row = TrainingRow(query_id="q", query=QUERY, positive_ids=("good",))
    permitted = allowed(corpus, [row], {"q": {"judged": 2}})
    removed = Counter()
    everything = np.arange(len(DOCUMENTS))
    mask = permitted.mask(permitted.forbidden(row), everything)
    permitted.forbidden(row).count(everything, mask, removed)
    assert removed == {"relevant": 2, "same_text": 4}  # good-copy, judged-copy, echo, bad-copy


def test_what_is_judged_not_relevant_by_the_split_the_row_or_for_the_same_text(corpus):
    row = TrainingRow(
        query_id="q", query=QUERY, positive_ids=("good",), negative_ids=("bad", "echo"), negative_labels=(0.0, 0.5)
    )
    twin = TrainingRow(query_id="twin", query=QUERY, positive_ids=("judged",))
    permitted = allowed(corpus, [row, twin], {"q": {"zero": 0, "good": 1, "gone": 0}, "twin": {"bad-copy": 0}})
    found = {corpus.ids[number] for number in permitted.judged_irrelevant(row).tolist()}
    assert found == {"bad", "zero", "bad-copy"}


def test_a_judgement_of_a_document_that_the_corpus_lacks_is_nothing(corpus):
    row = TrainingRow(query_id="q", query=QUERY, positive_ids=("good", "gone"))
    assert kept(corpus, [row], {}) == ["judged", "bad", "zero"]
