"""What survives an interrupted reranking, and what is never taken for it."""

import numpy as np
import pytest
from beir_folder import QUERIES, make_collection
from stub_reranker import StubReranker

from indexes.storage import StorageError
from retrieval import reranking
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.reranking import rerank
from retrieval.scored_blocks import ScoredBlocks, blocks_folder, open_blocks

RUN = {"q1": {"d4": 3.0, "d2": 2.5, "d1": 2.0, "d3": 1.0}, "q3": {"d1": 0.9, "d3": 0.8}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Collection.load(make_collection(tmp_path_factory.mktemp("small") / "c")).corpus


@pytest.fixture
def one_pair_per_block(monkeypatch):
    monkeypatch.setattr(reranking, "PAIRS_PER_BLOCK", 1)


def test_finished_queries_are_not_scored_again(corpus, tmp_path, one_pair_per_block):
    out = tmp_path / "out.run"
    stopping = StubReranker(fail_at=QUERIES["q3"])
    with pytest.raises(KeyboardInterrupt), open_blocks(out, resume=False) as blocks:
        rerank(RUN, stopping, QUERIES, corpus, blocks=blocks)
    assert stopping.seen == [QUERIES["q1"]]
    again = StubReranker()
    with open_blocks(out, resume=True) as blocks:
        found = rerank(RUN, again, QUERIES, corpus, blocks=blocks)
    assert again.seen == [QUERIES["q3"]]
    assert found == rerank(RUN, StubReranker(), QUERIES, corpus)
    assert not blocks_folder(out).exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"reranker": StubReranker(weights="others")},
        {"run": {**RUN, "q1": {"d4": 3.0}}},
        {"queries": {**QUERIES, "q1": "cats"}},
        {"k": 2},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_work_on_something_else_is_not_taken(corpus, tmp_path, one_pair_per_block, changed):
    out = tmp_path / "out.run"
    with pytest.raises(KeyboardInterrupt), open_blocks(out, resume=False) as blocks:
        rerank(RUN, StubReranker(fail_at=QUERIES["q3"]), QUERIES, corpus, blocks=blocks)
    now = {"run": RUN, "reranker": StubReranker(), "queries": QUERIES, "k": 100} | changed
    with (
        pytest.raises(InputError, match=r"scores of another reranker, run, text or k lie here; run without --resume"),
        open_blocks(out, resume=True) as blocks,
    ):
        rerank(now["run"], now["reranker"], now["queries"], corpus, k=now["k"], blocks=blocks)
    with open_blocks(out, resume=False) as blocks:  # begins anew
        found = rerank(now["run"], now["reranker"], now["queries"], corpus, k=now["k"], blocks=blocks)
    assert set(found) == {"q1", "q3"}
    assert not blocks_folder(out).exists()


def test_a_damaged_block_is_named(corpus, tmp_path, one_pair_per_block):
    out = tmp_path / "out.run"
    with pytest.raises(KeyboardInterrupt), open_blocks(out, resume=False) as blocks:
        rerank(RUN, StubReranker(fail_at=QUERIES["q3"]), QUERIES, corpus, blocks=blocks)
    (block,) = blocks_folder(out).glob("*.json")
    block.write_text(block.read_text()[:-5])
    with pytest.raises(InputError, match=r"\.json: is damaged .*; delete it"), open_blocks(out, resume=True) as blocks:
        rerank(RUN, StubReranker(), QUERIES, corpus, blocks=blocks)


def test_a_failure_before_the_first_block_leaves_nothing(corpus, tmp_path):
    out = tmp_path / "out.run"
    with pytest.raises(InputError), open_blocks(out, resume=False) as blocks:
        rerank({"q1": {"d9": 1.0}}, StubReranker(), QUERIES, corpus, blocks=blocks)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_beside_an_older_result_leaves_a_sign(corpus, tmp_path):
    """Without it, --resume would take the older result for the one that was asked for."""
    out = tmp_path / "out.run"
    out.write_text("old\n")
    with pytest.raises(KeyboardInterrupt), open_blocks(out, resume=False):
        raise KeyboardInterrupt
    assert blocks_folder(out).is_dir()
    with open_blocks(out, resume=True) as blocks:
        assert set(rerank(RUN, StubReranker(), QUERIES, corpus, blocks=blocks)) == {"q1", "q3"}
    assert not blocks_folder(out).exists()


def test_two_processes_cannot_work_on_one_result(tmp_path):
    out = tmp_path / "out.run"
    with (
        open_blocks(out, resume=False),
        pytest.raises(StorageError, match=r"\.out\.run\.parts"),
        open_blocks(out, resume=True),
    ):
        pass
    assert not blocks_folder(out).exists()


def test_scores_come_back_as_they_were(corpus, tmp_path):
    """Any float32 number, to the last bit."""
    out = tmp_path / "out.run"
    values = np.array([0.1, -1e-45, 3.4e38, 1 / 3], dtype=np.float32)
    blocks_folder(out).mkdir()
    first = ScoredBlocks(blocks_folder(out), resume=False)
    assert first.begin({}, QUERIES, RUN) == {}
    first.write({"q1": values})
    first.write({"q3": values[:2]})
    with open_blocks(out, resume=True) as blocks:
        found = blocks.begin({}, QUERIES, RUN)
    assert {query_id: scores.tobytes() for query_id, scores in found.items()} == {
        "q1": values.tobytes(),
        "q3": values[:2].tobytes(),
    }
