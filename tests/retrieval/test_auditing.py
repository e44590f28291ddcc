"""The audit of mined negatives: what is counted by hand, what is estimated, and which negatives are doubtful."""

import logging
import math

import numpy as np
import pytest
from beir_folder import make_collection
from stub_reranker import StubReranker

from retrieval.audit_evidence import MinedQuery
from retrieval.auditing import BANDS, audit
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.false_negatives import Band
from retrieval.rows import TrainingRow

# Per query i: p-i and r-i are relevant, h-i is too, but nobody knows; n-i-0 to n-i-7 are not.
N = 12
TOPICS = [f"alpha{i} beta{i} gamma{i} delta{i}" for i in range(N)]
DOCUMENTS = [
    {"_id": f"{kind}-{i}", "text": f"{text} {topic}"}
    for i, topic in enumerate(TOPICS)
    for kind, text in {"p": "first story of", "r": "second tale about", "h": "third account with"}.items()
] + [
    {"_id": f"n-{i}-{j}", "text": f"unrelated words number{i} item{j} alpha{i} {'filler ' * j}"}
    for i in range(N)
    for j in range(8)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = make_collection(tmp_path_factory.mktemp("audited"), DOCUMENTS, {"q": "x"}, {})
    return Collection.load(folder).corpus


def row(i, *, hidden_at=2, **changes) -> TrainingRow:
    """A query whose miner ranked eight irrelevant documents and, at rank `hidden_at`, a relevant one."""
    negatives = [f"n-{i}-{j}" for j in range(8)]
    negatives.insert(hidden_at - 1, f"h-{i}")
    values = {
        "positive_ids": (f"p-{i}", f"r-{i}"),
        "negative_ids": tuple(negatives),
        "positive_scores": (0.95, 0.85),
        "negative_scores": tuple(0.9 - 0.05 * place for place in range(9)),
        "negative_ranks": tuple(range(1, 10)),
    }
    return TrainingRow(query_id=f"q{i}", query=TOPICS[i], **(values | changes))


ROWS = [row(i) for i in range(N)]
SPLIT = (Band(1, 3), Band(4, 9))


def test_hidden_positives_are_found_by_a_reranker_and_by_their_words(corpus):
    found = audit(ROWS, corpus, reranker=StubReranker(), bands=SPLIT)
    assert (found.queries, found.negatives, found.outside, found.scored_by) == (N, 9 * N, 0, "reranker")
    top, deep = found.bands
    assert (top.negatives, deep.negatives) == (3 * N, 6 * N)
    # A third of the first band's negatives share four words with the query, as the positives do; the others one.
    assert top.scores.value == pytest.approx(1 / 3)
    assert top.likeness.value == pytest.approx(1 / 3)
    assert not top.scores.is_bound
    assert deep.scores.value == deep.likeness.value == 0
    assert top.scores.positives == 2 * N
    assert top.scores.matched  # by the miner's scores in the rows, the positives would stand at ranks 1 and 3


def test_without_a_reranker_the_scores_are_the_rows_and_a_bound(corpus):
    found = audit(ROWS, corpus, bands=SPLIT)
    assert found.scored_by == "rows"
    assert found.bands[0].scores.is_bound
    assert found.bands[0].scores.matched
    shuffled = [row(i, negative_scores=(0.1, 0.95, *[0.1, 0.2] * 3, 0.1)) for i in range(N)]
    found = audit(shuffled, corpus, bands=SPLIT)  # such as of two sources, or of a reranker that `mine` used
    assert found.bands[0].scores.value == pytest.approx(1 / 3)
    assert found.bands[0].scores.is_bound
    assert not found.bands[0].scores.matched  # nothing says where the positives would stand
    bare = [row(i, positive_scores=(), negative_scores=()) for i in range(N)]
    found = audit(bare, corpus, bands=SPLIT)
    assert found.scored_by == "nothing"
    assert found.bands[0].scores is None
    assert found.bands[0].likeness.value == pytest.approx(1 / 3)


def test_a_query_whose_scores_are_out_of_order_changes_no_other(corpus):
    ranks = tuple(range(1, 10))
    swapped = row(0, negative_scores=(0.5, 0.9, 0.8, 0.85, 0.7, 0.75, 0.6, 0.65, 0.1), negative_ranks=ranks)
    whole, found = (audit(rows, corpus, reranker=StubReranker(), bands=SPLIT) for rows in (ROWS, [swapped, *ROWS[1:]]))
    assert whole.bands[0].scores.positives == 2 * N
    assert found.bands[0].scores.positives == 2 * (N - 1)  # where its own positives would stand is unknown
    assert found.bands[0].scores.matched
    assert found.bands[0].scores.value == pytest.approx(1 / 3)
    without = audit([swapped, *ROWS[1:]], corpus, bands=SPLIT)
    assert without.bands[0].scores.is_bound


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([0.9, 0.8, 0.6, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0], [[2, 2], [4, 4]]),  # one of ten neighbours rises
        ([0.9, 0.8, 0.6, 0.7, 0.5, 0.4, 0.3, 0.2, 0.05, 0.1, 0.0], [[math.nan] * 2] * 2),  # two of ten
        ([0.9], [[2, math.inf]] * 2),
    ],
)
def test_a_positive_has_a_rank_where_scores_fall_but_for_a_few(scores, ranks):
    names = [f"n{number}" for number in range(len(scores))]
    known = {"a": 0.85, "b": 0.65} | dict(zip(names, scores, strict=True))
    one = MinedQuery("q", ["a", "b"], names, np.arange(1.0, len(names) + 1), known)
    assert one.positive_ranks() == pytest.approx(np.array(ranks), nan_ok=True)
    del known["b"]
    assert np.isnan(one.positive_ranks()).all()


def test_judgements_are_counted_with_how_many_there_are(corpus, caplog):
    qrels = {"q0": {"h-0": 1, "n-0-0": 0, "n-0-7": 2}, "q1": {"h-1": 0}, "q99": {"h-0": 1}}
    top, deep = audit(ROWS, corpus, qrels=qrels, bands=SPLIT).bands
    assert (top.judged, top.known.value) == (3, pytest.approx(1 / (3 * N)))
    assert (deep.judged, deep.known.value) == (1, pytest.approx(1 / (6 * N)))
    assert top.known.low == 0
    assert audit(ROWS, corpus, bands=SPLIT).bands[0].known is None
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        top = audit(ROWS, corpus, qrels={"q99": {"h-0": 1}}, bands=SPLIT).bands[0]
    assert (top.judged, top.known) == (0, None)  # nothing is known, which is not 0 %
    assert "the judgements mention none of the negatives; are they about other queries?" in caplog.text


def test_near_duplicates_of_a_positive_are_counted_and_come_first(tmp_path):
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    documents = [
        {"_id": "p", "text": f"{text} sixteen"},
        {"_id": "other", "text": "one two three"},
        {"_id": "near", "text": f"{text} sixteen seventeen"},
        {"_id": "far", "text": " ".join(["seventeen", "eighteen", *text.split()[2:]])},
        {"_id": "reversed", "text": " ".join(reversed(text.split()))},
    ]
    corpus = Collection.load(make_collection(tmp_path / "d", documents, {"q": "x"}, {})).corpus
    one = TrainingRow(query_id="q", query="one", positive_ids=("other", "p"), negative_ids=("reversed", "far", "near"))
    found = audit([one], corpus, bands=[Band(1, 3)])
    assert found.bands[0].near.value == pytest.approx(1 / 3)  # 14 of 15 shingles; of "far" 11 of 16
    assert [pair.doc_id for pair in found.doubtful] == ["near", "reversed", "far"]
    nearest = found.doubtful[0]
    assert (nearest.repeats, nearest.best_positive_id, nearest.rank) == (pytest.approx(14 / 15), "p", 3)
    assert found.doubtful[2].repeats == pytest.approx(11 / 16)
    assert nearest.document == f"{text} sixteen seventeen"


def test_the_most_doubtful_are_the_hidden_ones_with_their_margins(corpus):
    found = audit(ROWS, corpus, reranker=StubReranker(), qrels={"q0": {"h-0": 1}}, top=N)
    assert {pair.doc_id for pair in found.doubtful[: N - 1]} == {f"h-{i}" for i in range(1, N)}  # h-0 is judged
    first = found.doubtful[0]
    assert (first.score, first.margin, first.rank) == (4, 0, 2)
    assert first.best_positive_id in {f"p-{first.query_id[1:]}", f"r-{first.query_id[1:]}"}
    assert 0 < first.likeness < 1
    assert len(audit(ROWS, corpus, top=5).doubtful) == 5
    assert audit(ROWS, corpus, top=0).doubtful == ()


def test_negatives_outside_of_the_bands_are_counted(corpus):
    found = audit(ROWS, corpus, bands=[Band(4, 6)])
    assert (found.bands[0].negatives, found.outside) == (3 * N, 6 * N)
    empty = audit(ROWS, corpus, bands=[Band(50, 60)]).bands[0]
    assert (empty.negatives, empty.scores, empty.likeness, empty.near) == (0, None, None, None)


def test_rows_of_one_query_are_one_query(corpus, caplog):
    parts = [
        row(0, positive_ids=("p-0",), positive_scores=(0.9,)),
        row(
            0,
            positive_ids=("h-0",),
            positive_scores=(0.8,),
            negative_ids=("n-0-0",),
            negative_scores=(0.5,),
            negative_ranks=(4,),
        ),
        row(1, positive_ids=("p-1",), positive_scores=(), negative_ids=(), negative_scores=(), negative_ranks=()),
    ]
    with caplog.at_level(logging.WARNING):
        found = audit(parts, corpus)
    assert (found.queries, found.negatives) == (2, 8)
    assert "1 negatives are positives in another row of the same query; left out" in caplog.text
    assert "1 of 2 queries lack scores; not in the estimate" in caplog.text


def test_without_ranks_the_places_are_taken_and_that_is_said(corpus, caplog):
    with caplog.at_level(logging.WARNING):
        found = audit([row(i, negative_ranks=()) for i in range(N)], corpus, bands=SPLIT)
    assert found.bands[0].negatives == 3 * N
    assert f"{N} rows have no negative_ranks" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0, positive_ids=("p-0", "zebra"))], "query 'q0': document 'zebra' is not in the corpus; is --data the"),
        ([row(0, positive_ids=(), positive_scores=())], "query 'q0': has no positive to compare its negatives with"),
        ([row(0, negative_ids=(), negative_scores=(), negative_ranks=())], "the rows have no negative; `mine` finds"),
        ([TrainingRow(query_id="q0", query="a", positive_ids=("p-0",), negatives=("text",))], "documents without ids"),
        ([], "the rows have no negative"),
    ],
)
def test_rows_that_cannot_be_audited_are_refused(corpus, rows, message):
    with pytest.raises(InputError, match=message):
        audit(rows, corpus)


@pytest.mark.parametrize(
    "bands", [[], [Band(0, 3)], [Band(5, 4)], [Band(1, 10), Band(10, 20)], [Band(11, 20), Band(1, 10)]]
)
def test_bands_that_overlap_or_fall_are_refused(corpus, bands):
    with pytest.raises(InputError, match=r"bands must be ranks that rise|got no band of ranks"):
        audit(ROWS, corpus, bands=bands)
    with pytest.raises(InputError, match="top must be at least 0, got -1"):
        audit(ROWS, corpus, bands=BANDS, top=-1)


def test_the_same_rows_give_the_same_audit(corpus):
    assert audit(ROWS, corpus, reranker=StubReranker()) == audit(iter(ROWS), corpus, reranker=StubReranker())


def test_a_reranker_of_runs_gets_the_list_that_the_miner_made(corpus):
    class Seen:
        def __init__(self):
            self.lists = {}

        def score_run(self, queries, candidates):
            self.lists |= candidates
            return [np.full(len(found), np.nan if len(self.lists) > N - 1 else 1.0) for found in candidates.values()]

        def fingerprint(self):
            return {}

    seen = Seen()
    with pytest.raises(InputError, match="query 'q0': the reranker gives scores that are not finite numbers"):
        audit(ROWS, corpus, reranker=seen)
    assert list(seen.lists["q3"])[:4] == ["p-3", "n-3-0", "r-3", "h-3"]  # by score; r-3 and h-3 tie
    audit(ROWS[:-1], corpus, reranker=Seen())
