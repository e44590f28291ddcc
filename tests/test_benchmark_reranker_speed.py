"""The speed of rerankers: the lists that are trained on, and the table, by hand."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import reranker_speed
from benchmarks.cells import Options, Results, code_hash

MACHINE = {"cpu": "a processor", "cores": 2, "bf16": ["amx_bf16"], "load": 0.5}


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(shared=tmp_path / "shared", results=tmp_path / "results", build=tmp_path / "build")


class Answers(Results):
    """Results as if these methods were finished."""

    def __init__(self, *methods) -> None:
        super().__init__(folder=None)
        self.methods = methods

    def find(self, name, cell):
        if cell.settings["method"] not in self.methods:
            return None
        rates = {
            reranker_speed.OURS: [40.0, 60.0, 50.0],
            reranker_speed.DEFAULT: [20.0, 20.0, 20.0],
            reranker_speed.BF16: [40.0, 30.0, 50.0],
        }
        values = {"rates": rates}
        if cell.settings["method"] == "set":
            values = {"rates": {what: {"classifier": [3.0, 2.0], "set": [1.5, 2.0]} for what in ("score", "train")}}
        if cell.settings["method"] == "score":
            values["lowest_correlation"] = {reranker_speed.OURS: 0.99987}
        return {"values": values, "machine": MACHINE, "versions": {"torch": "2.13.0"}}


@pytest.mark.parametrize("tiny", [False, True])
def test_every_cell_is_sound(options, tiny):
    options = Options(shared=options.shared, results=options.results, build=options.build, tiny=tiny)
    cells = reranker_speed.plan(options, Answers()).cells
    assert [cell.settings["method"] for cell in cells] == ["score", "train", "set"]
    for cell in cells:
        assert json.loads(json.dumps(cell.settings)) == cell.settings
        assert len(code_hash(cell.sources)) == 16  # every source exists
        assert cell.settings["documents"] == (4 if tiny else {"train": 8}.get(cell.settings["method"], 100))
    assert sum(cell.seconds for cell in cells) < 30 * 60
    assert reranker_speed.EXPERIMENT.alone


def test_the_table_shows_the_median_and_range_of_paired_ratios(options):
    lines = reranker_speed.table(options, Answers("score", "train")).splitlines()
    assert "| ours (auto) | 50.0 | – | – | 3 | 0.9999 |" in lines
    assert "| sentence-transformers | 20.0 | 2.50× [2.00, 3.00] | ≥ 3× | 3 |  |" in lines
    assert "| sentence-transformers, bf16 | 40.0 | 1.00× [1.00, 2.00] | ≥ 1.2× | 3 |  |" in lines
    assert any(line.startswith("| train | lists/s, median | ours (auto) is faster by |") for line in lines)
    assert any("a processor, 2 cores, bf16; torch 2.13.0; load when the cells began: up to 0.5." in x for x in lines)


def test_a_set_encoder_s_cost_is_the_classifier_s_rate_over_its_own(options):
    lines = reranker_speed.table(options, Answers("set")).splitlines()
    assert "| score | 2.50 | 1.75 | 1.50× [1.00, 2.00] | 2 |" in lines


def test_what_is_not_finished_is_not_shown(options):
    text = reranker_speed.table(options, Answers("score"))
    assert "| score |" in text
    assert "| train |" not in text
    assert "| score |" not in reranker_speed.table(options, Answers())


def test_a_title_belongs_to_the_first_text_of_its_list():
    documents = [SimpleNamespace(title=f"t{i}", text=f"x{i}") for i in range(3)]
    documents.insert(1, SimpleNamespace(title="", text="no title"))
    found = reranker_speed.lists_of(SimpleNamespace(corpus=documents), 2)
    assert found == [("t0", ["x0", "x1"]), ("t1", ["x1", "x2"]), ("t2", ["x2", "x0"])]
