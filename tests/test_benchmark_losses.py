"""The benchmarks about losses alone: what they compare is the same loss, and what they measure is what they say."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import blind_spot, large_batches, whole_matrix
from benchmarks.cells import Options, Results
from indexes.storage import write_lines
from rankers.losses import build
from retrieval.collection import Collection


@pytest.fixture
def tiny(tmp_path) -> Options:
    return Options(shared=tmp_path, results=tmp_path / "results", build=tmp_path / "build", tiny=True)


class Measured(Results):
    """What the cells gave, by their key."""

    def __init__(self, values) -> None:
        super().__init__(folder=None)
        self.by_key = values

    def find(self, name, cell):
        return {"values": self.by_key[cell.key]} if cell.key in self.by_key else None


# --- large batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 7, 40])
@pytest.mark.parametrize("loss", large_batches.AIMS_RATIO)
def test_the_naive_loss_is_the_one_of_the_table(loss, size):
    queries, documents = large_batches.embeddings(size, 6, seed=0)
    name, _, symmetric = loss.partition(", ")
    built = build(name, **({"symmetric": True} if symmetric else {}))
    scores = (queries @ documents.T).requires_grad_()
    expected = built(scores, torch.eye(size))
    slope = torch.autograd.grad(expected, scores)[0]
    value, by_query, by_document = whole_matrix.gradients(loss, queries, documents)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(by_query, slope @ documents, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(by_document, slope.T @ queries, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", large_batches.AIMS_RATIO)
def test_ours_is_what_the_naive_loss_is(loss):
    inputs = large_batches.embeddings(30, 6, seed=1)
    ours = large_batches.runner(loss, large_batches.OURS)(*inputs)
    naive = large_batches.runner(loss, large_batches.NAIVE)(*inputs)
    assert ours[0] == pytest.approx(naive[0], rel=1e-5)
    for mine, theirs in zip(ours[1:], naive[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mini_batch", [4, 64])
def test_the_cached_loss_of_sentence_transformers_is_infonce_too(mini_batch):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    inputs = large_batches.embeddings(30, 6, seed=1)
    value, slope = whole_matrix.cached_infonce(mini_batch)(*inputs)
    assert value == pytest.approx(whole_matrix.gradients("infonce", *inputs)[0], rel=1e-5)
    # Σ embedding · gradient, 0 for cosines: the gradients have come back through both replays
    assert slope == pytest.approx(0, abs=1e-4)


def test_targets_say_that_each_query_has_its_own_document():
    targets = large_batches.targets(5, symmetric=True)
    part = targets.rows(1, 4)
    torch.testing.assert_close(part.labels, torch.eye(5)[1:4])
    assert part.where.all()
    assert not part.at_call  # each query occurs once, so that the columns' direction has the same mask


def test_each_query_lies_nearest_to_its_own_document():
    queries, documents = large_batches.embeddings(50, 384, seed=0)
    torch.testing.assert_close(queries.norm(dim=1), torch.ones(50))
    assert (queries @ documents.T).argmax(1).tolist() == list(range(50))


def test_added_memory_is_that_of_the_run_alone():
    if sys.platform != "linux":
        with pytest.raises(RuntimeError, match="measures memory on Linux"):
            large_batches.added_peak(lambda: 0.0)
        return
    code = (  # in a process of its own: in this one, freed memory may serve again
        "import numpy as np; from benchmarks import large_batches\n"
        "np.ones(40 << 17).sum()\nheld = np.ones(10 << 17)\n"
        "print(*large_batches.added_peak(lambda: float(np.ones(20 << 17).sum())), held.any())"
    )
    root = Path(__file__).resolve().parents[1]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    added, answer, _ = told.split()
    assert float(answer) == 20 << 17
    assert 19 <= float(added) < 30


def test_what_does_not_fit_is_not_run_and_is_told(tmp_path):
    options = Options(shared=tmp_path, results=tmp_path, build=tmp_path)
    cells = [cell.settings for cell in large_batches.plan(options, Measured({})).cells]
    naive = {
        loss: [s["size"] for s in cells if s["method"] == loss and s.get("system") == "naive"]
        for loss in large_batches.AIMS_RATIO
    }
    assert naive["mw"] == [512]
    for loss in large_batches.MATRICES:
        assert max(naive[loss]) == 16_384
        assert large_batches.naive_gib(loss, 32_768) > large_batches.LIMIT_GIB
    ours = {s["method"] for s in cells if s.get("system") == "ours" and s["size"] == 65_536}
    assert ours == {"infonce", "decoupled_softmax", "bixse", "sl_at_k", "mw"}
    turns = {(s["method"], s["size"]) for s in cells if s["stage"] == "turns"}
    assert turns == {(loss, size) for loss, sizes in naive.items() for size in sizes}
    one = next(cell for cell in large_batches.plan(options, Measured({})).cells if cell.settings["size"] == 512)
    table = large_batches.table(options, Measured({one.key: {"mib": 7.0, "seconds": [0.25, 0.5, 0.75]}}))
    assert "not run: about 13 GiB" in table  # infonce of 32,768: 3.2 matrices of 4 GiB
    assert "| mw: naive | – | B³: 1e+09 pairs |" in table
    assert "| mw: ours | 7 | – |" in table


@pytest.mark.slow
def test_a_dry_run_measures_every_cell_and_prints_it(tiny, tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    if sys.platform != "linux":
        monkeypatch.setattr(large_batches, "added_peak", lambda run: (1.0, run()))
    cells = large_batches.plan(tiny, Measured({})).cells
    found = {cell.key: large_batches.work(cell.settings, tiny, tmp_path) for cell in cells}
    assert {len(found[c.key]["seconds"]) for c in cells if c.settings["stage"] == "memory"} == {3}
    for cell in cells:
        if cell.settings["stage"] == "turns":
            ours, naive = found[cell.key]["loss"]
            assert ours == pytest.approx(naive, rel=1e-4)
    text = large_batches.table(tiny, Measured(found))
    assert "Not finished" not in text
    assert text.count("| infonce: ours |") == 2  # memory and seconds


def test_aims_are_told_by_the_worst_measured():
    mib = {("infonce", "ours", 8_192): 100.0, ("mw", "ours", 8_192): 130.0, ("infonce", "naive", 8_192): 800.0}
    mib[("infonce", "ours", 65_536)] = 900.0
    turns = {("infonce", 8_192): [[1.0, 1.0], [1.0, 2.0], [3.0, 1.0]], ("mw", 512): [[1.6, 1.0]]}
    lines = large_batches._aims(mib, turns).splitlines()
    assert lines[2:] == [
        "| B = 8,192: ≤ 120 MiB | 130 MiB (mw) | **no** |",
        "| B = 65,536: ≤ 2,048 MiB | 900 MiB (infonce) | yes |",
        "| 8 × the batch: ≤ 8 × the memory | 9.0× (infonce) | **no** |",
        "| one pass: ≤ 1.1 × the time of naive | 1.00× (infonce, B = 8,192) | yes |",
        "| two passes: ≤ 1.5 × the time of naive | 1.60× (mw, B = 512) | **no** |",
    ]


# --- the blind spot ---------------------------------------------------------------------------------------------------


def test_pools_are_the_relevant_and_the_best_others():
    scores = np.array([[0.9, 0.1, 0.5, 0.7], [0.2, 0.8, 0.3, 0.4]])
    positives, negatives = blind_spot.pools(scores, [[2], [0, 1]], 2)
    assert [list(p) for p in positives] == [[0.5], [0.2, 0.8]]
    assert [list(n) for n in negatives] == [[0.9, 0.7], [0.4, 0.3]]


@pytest.fixture(scope="module")
def pool():
    generator = np.random.default_rng(0)
    positives = [generator.normal(0.5, 0.1, size=1 + i % 3) for i in range(120)]
    return positives, [generator.normal(0.2, 0.1, size=20) for _ in positives]


def test_infonce_does_not_see_offsets_that_mw_and_the_pooled_auc_see(pool):
    """The lemma of the MW paper: offsets from U(−100, 100)."""
    without = blind_spot.measured(*pool, 0.0, draws=1)
    with_offsets = blind_spot.measured(*pool, 100.0, draws=3)
    assert with_offsets["infonce"] == pytest.approx(without["infonce"] * 3, abs=1e-6)
    assert min(with_offsets["mw"]) > 100 * without["mw"][0]
    assert without["auc"][0] > 0.95
    assert np.mean(with_offsets["auc"]) == pytest.approx(0.5, abs=0.05)
    assert with_offsets["low"] < with_offsets["auc"][0] < with_offsets["high"]


def test_the_losses_by_hand():
    """One query: InfoNCE and MW of one relevant document and one other are the same logistic loss."""
    found = blind_spot.losses([np.array([0.3])], [np.array([0.2])], temperature=0.1)
    assert found["infonce"] == pytest.approx(np.log1p(np.exp(-1)))
    assert found["mw"] == pytest.approx(np.log1p(np.exp(-1)))


def test_the_cell_measures_a_collection(tiny, tmp_path, minilm, monkeypatch):
    words = ["sort an array", "invert a matrix", "read a file", "plot a line", "train a model", "sum a column"]
    folder = tmp_path / "collection"
    write_lines(
        folder / "corpus.jsonl", (f'{{"_id": "d{i}", "title": "", "text": "{w}"}}' for i, w in enumerate(words))
    )
    write_lines(folder / "queries.jsonl", (f'{{"_id": "q{i}", "text": "how to {w}"}}' for i, w in enumerate(words)))
    judged = [f"q{i}\td{i}\t1" for i in range(len(words))]
    write_lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore", *judged])
    monkeypatch.setattr(blind_spot, "data", SimpleNamespace(collection=lambda name, options: Collection(folder)))
    cell = blind_spot.plan(tiny, Measured({})).cells[0]
    values = blind_spot.work(cell.settings, tiny, tmp_path)
    assert values["pairs"] == [6, 30]
    assert [point["width"] for point in values["points"]] == list(blind_spot.WIDTHS)
    assert values["points"][0]["auc"][0] > 0.9
    text = blind_spot.table(tiny, Measured({cell.key: values}))
    assert "6 queries, 6 relevant and 30 other pairs." in text
    assert text.count("\n| ") == 1 + len(blind_spot.WIDTHS)


def test_the_picture_has_both_curves_and_names_its_axes(pool, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    points = [blind_spot.measured(*pool, width, draws=1) for width in (0.0, 0.1, 10.0)]
    figure = blind_spot.draw(points)
    losses, auc = figure.axes
    assert {line.get_label() for line in losses.lines} >= {"InfoNCE", "MW"}
    assert "nats" in losses.get_ylabel()
    assert auc.get_ylabel() == "pooled ROC-AUC"
    assert all("units of cosine" in axes.get_xlabel() for axes in figure.axes)
    drawn = next(line for line in auc.lines if line.get_label() == "pooled ROC-AUC")
    np.testing.assert_allclose(drawn.get_ydata(), [point["auc"][0] for point in points[1:]])
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
