"""The benchmark of tournaments: the comparator is as good as it says, and what is measured is what the table says."""

import numpy as np
import pytest

from benchmarks import tournaments
from benchmarks.cells import Options, Results, code_hash
from benchmarks.tournaments import MEASURES, NoisyComparator
from indexes.storage import write_lines
from rankers.tournaments import STRATEGIES, rank


class Measured(Results):
    """What the cells gave, by their key."""

    def __init__(self, values) -> None:
        super().__init__(folder=None)
        self.by_key = values

    def find(self, name, cell):
        return {"values": self.by_key[cell.key]} if cell.key in self.by_key else None


@pytest.fixture
def tiny(tmp_path) -> Options:
    """A collection of 3 queries with 9 graded documents, and one with too few of them."""
    folder = tmp_path / "data" / tournaments.DATA
    documents = [f"d{i}" for i in range(60)]  # a scrap needs so many
    write_lines(folder / "corpus.jsonl", (f'{{"_id": "{d}", "title": "", "text": "t"}}' for d in documents))
    queries = ["q0", "q1", "q2", "few"]
    write_lines(folder / "queries.jsonl", (f'{{"_id": "{q}", "text": "t"}}' for q in queries))
    judged = [f"{q}\t{d}\t{1 + place % 8}" for q in queries[:3] for place, d in enumerate(documents[:9])]
    lines = ["query-id\tcorpus-id\tscore", *judged, "few\td0\t1", "few\td1\t2"]
    write_lines(folder / "qrels" / f"{tournaments.SPLIT}.tsv", lines)
    return Options(shared=tmp_path, results=tmp_path / "results", build=tmp_path / "build", tiny=True)


def test_the_comparator_is_as_often_right_as_it_says():
    comparator = NoisyComparator(np.array([1, 5, 5]), 0.8, np.random.default_rng(0))
    first, second = np.array([0, 1, 1]), np.array([1, 0, 2])
    np.testing.assert_allclose(comparator.chances(first, second), [0.2, 0.8, 0.5])
    answers = np.mean([comparator(first, second) for _ in range(4_000)], axis=0)
    np.testing.assert_allclose(answers, [0.2, 0.8, 0.5], atol=0.03)


def test_a_ranking_without_noise_measures_one():
    grades = np.array([2, 4, 1, 3])
    comparator = NoisyComparator(grades, 1.0, np.random.default_rng(0))
    right = rank(4, comparator, strategy="max_wins")
    found = dict(zip(MEASURES, tournaments.measured(right, grades, comparator), strict=True))
    assert found == pytest.approx({"calls": 6, "ndcg": 1, "first": 1, "tau": 1, "told": 4 / 5, "true": 1})


def test_a_wrong_ranking_by_hand():
    grades = np.array([1, 2])
    comparator = NoisyComparator(grades, 0.75, np.random.default_rng(0))
    wrong = rank(2, lambda i, j: (i < j).astype(float), strategy="knockout")
    found = dict(zip(MEASURES, tournaments.measured(wrong, grades, comparator), strict=True))
    best, worst = 2 + 1 / np.log2(3), 1 + 2 / np.log2(3)
    assert found == pytest.approx(
        {"calls": 1, "ndcg": worst / best, "first": 0, "tau": -1, "told": 2 / 3, "true": 0.25}
    )


def test_knockout_wins_as_often_as_predicted():
    for row in tournaments.binomial(0.8, 400):
        expected = row["predicted"]
        assert expected == pytest.approx(0.8**5, abs=0.02)  # 32 candidates, or nearly
        assert abs(row["won"] / 400 - expected) < 3 * np.sqrt(expected * (1 - expected) / 400)


def test_every_strategy_but_max_logits_is_measured():
    arms = [arm for line in tournaments.LINES.values() for arm in line]
    assert {arm["strategy"] for arm in arms} == set(STRATEGIES) - {"max_logits"}
    assert max(arm.get("budget", 0) for arm in arms) == 32 * 31 // 2


def test_a_dry_run_from_the_data_to_the_picture(tiny, tmp_path):
    cells = tournaments.plan(tiny, Measured({})).cells
    assert len({cell.key for cell in cells}) == len(tournaments.ACCURACIES) + 1
    assert len(tournaments.prepare(tiny)) == 16
    assert len(code_hash(cells[0].sources)) == 16
    values = {cell.key: tournaments.work(cell.settings, tiny, tmp_path) for cell in cells}
    points = values[cells[-2].key]["points"]
    assert values[cells[0].key]["queries"] == 3
    assert points[0]["line"] == "no calls"
    assert points[0]["calls"] == 0
    assert len(points) == 1 + sum(map(len, tournaments.LINES.values()))
    assert np.mean([p["ndcg"] for p in points[1:]]) > points[0]["ndcg"]
    assert tournaments.work(cells[0].settings, tiny, tmp_path) == values[cells[0].key]  # the seed decides
    text = tournaments.table(tiny, Measured(values))
    assert text.count("A comparator right with probability") == 3
    assert "| sort, top 10, stopped at 64 |" in text
    assert "| knockout, each 3 times | 21 |" in text
    assert "Not finished" not in text
    assert "nan" not in text
    assert "**Not finished; cells still to be run: 4.**" in tournaments.table(tiny, Measured({}))
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    figure = tournaments.draw({p: values[c.key]["points"] for p, c in zip(tournaments.ACCURACIES, cells, strict=False)})
    labels = {line.get_label() for line in figure.axes[0].lines}
    assert labels == {"no calls", *tournaments.LINES}
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_real_lists_are_drawn_alike_for_every_strategy(shared, tmp_path):
    if not (shared / "data" / tournaments.DATA).is_dir():
        pytest.skip("needs ../shared/data/cystic_fibrosis")
    options = Options(shared=shared, results=tmp_path, build=tmp_path / "build")
    qrels = tournaments.data.collection(tournaments.DATA, options).qrels(tournaments.SPLIT)
    graded = sorted(qrels["1"].items())
    settings = {"size": 32, "accuracy": 1.0}
    arms = [{"strategy": s, "budget": b} for b in (0, None) for s in STRATEGIES if s not in ("max_wins", "max_logits")]
    found = np.array([tournaments._once(arm, graded, 0, ["1", arm["strategy"], 0], settings) for arm in arms])
    without, with_calls = found[: len(arms) // 2], found[len(arms) // 2 :]
    assert (without == without[0]).all()  # one list in one order
    assert without[0, MEASURES.index("ndcg")] < 0.9
    assert (with_calls[:, MEASURES.index("first")] == 1).all()  # without noise, everyone finds the best
