"""The speed of mining: the settings that both sides get, how choices are compared, and the table, by hand."""

import json

import pytest

from benchmarks import mining_speed
from benchmarks.cells import Options, Results, code_hash
from benchmarks.mining_speed import agree, turn
from retrieval.negative_candidates import _LEAST_DEPTH, _SPARE

MACHINE = {"cpu": "a processor", "cores": 2, "bf16": ["amx_bf16"], "load": 0.5}
SYSTEMS = (mining_speed.OURS, mining_speed.DEFAULT, mining_speed.FAISS, mining_speed.OURS_FP32)


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(shared=tmp_path / "shared", results=tmp_path / "results", build=tmp_path / "build")


class Answers(Results):
    """Results as if the cell were finished, or not."""

    def __init__(self, *, finished=True) -> None:
        super().__init__(folder=None)
        self.finished = finished

    def find(self, name, cell):
        if not self.finished:
            return None
        seconds = dict(
            zip(SYSTEMS, ([10.0, 20.0, 10.0], [40.0, 60.0, 50.0], [20.0, 20.0, 20.0], [20.0, 30.0, 25.0]), strict=True)
        )
        agreement = dict(
            zip(SYSTEMS, [{"queries": 0.5, "negatives": 0.9}, *[{"queries": 1.0, "negatives": 1.0}] * 2], strict=False)
        )
        values = {
            "seconds": dict.fromkeys(mining_speed.RUNS, seconds),
            "agreement": dict.fromkeys(mining_speed.RUNS, agreement),
            "versions": {"datasets": "4.0"},
        }
        return {"values": values, "machine": MACHINE, "versions": {"torch": "2.13.0"}}


@pytest.mark.parametrize("tiny", [False, True])
def test_the_cell_is_sound(options, tiny):
    options = Options(shared=options.shared, results=options.results, build=options.build, tiny=tiny)
    (cell,) = mining_speed.plan(options, Answers()).cells
    assert json.loads(json.dumps(cell.settings)) == cell.settings
    assert len(code_hash(cell.sources)) == 16  # every source exists
    assert cell.settings["queries"] == (6 if tiny else 2_000)
    assert cell.settings["rounds"] >= (2 if tiny else 3)
    assert cell.seconds < 60 * 60
    assert mining_speed.EXPERIMENT.alone


def test_later_runs_differ_in_every_setting_that_needs_no_encoding_and_the_third_must_search():
    first, second, third = mining_speed.RUNS.values()
    for name in ("last_rank", "num_negatives", "relative_margin"):
        assert len({getattr(rules, name) for rules in (first, second, third)}) == 3
    assert first.first_rank != second.first_rank
    assert second.last_rank + _SPARE <= _LEAST_DEPTH < third.last_rank
    # Theirs counts the window after the margin, ours before: with a margin, both must begin at the first rank.
    assert all(rules.first_rank == 1 for rules in (first, second, third) if rules.has_margin)
    assert mining_speed.AIMS.keys() == mining_speed.RUNS.keys()


def test_every_round_begins_with_another_system():
    assert [turn(list("abc"), number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_agreement_by_hand():
    ours = {"a": frozenset({"x", "y"}), "b": frozenset({"x"}), "c": frozenset(), "d": frozenset({"z"})}
    theirs = {"a": frozenset({"y", "x"}), "b": frozenset({"x", "z"}), "e": frozenset({"w"})}
    # a is the same; c is empty in both; b, d and e differ. Of our four, x, y and x are theirs too
    assert agree(ours, theirs) == {"queries": 2 / 5, "negatives": 3 / 4}
    assert agree(ours, ours) == {"queries": 1.0, "negatives": 1.0}


def test_the_table_shows_the_median_and_range_of_paired_ratios(options):
    lines = mining_speed.table(options, Answers()).splitlines()
    assert "| ours (auto) | 10.00 | – | – | – | 3 |" in lines
    assert "| sentence-transformers | 50.00 | 4.00× [3.00, 5.00] | 2.00× [2.00, 2.00] | ≥ 3× | 3 |" in lines
    assert "| sentence-transformers | 50.00 | 4.00× [3.00, 5.00] | 2.00× [2.00, 2.00] | ≥ 2× | 3 |" in lines
    assert "| sentence-transformers, use_faiss | 20.00 | 2.00× [1.00, 2.00] | 0.80× [0.67, 1.00] | ≥ 3× | 3 |" in lines
    assert "| second run: ours (auto) | 50.0 % | 90.00 % |" in lines
    assert any(
        "a processor, 2 cores, bf16; torch 2.13.0, datasets 4.0; load when the cell began: 0.5." in x for x in lines
    )


def test_what_is_not_finished_is_not_shown(options):
    assert "Nothing is finished yet" in mining_speed.table(options, Answers(finished=False))
