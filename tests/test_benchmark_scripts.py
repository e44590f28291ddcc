"""The benchmarks' scripts: what they plan, on what they train, and the tables that they print, by hand."""

import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from beir_folder import make_collection
from hypothesis import given
from hypothesis import strategies as st
from made_up_cells import MACHINE, MADE_UP

from benchmarks import (
    cystic_fibrosis,
    data,
    hard_batches,
    medquad,
    pydocs,
    quality,
    rerankers,
    scifact,
    side_by_side,
    speed,
    tables,
)
from benchmarks.__main__ import NAMES
from benchmarks.cells import Options, Results, code_hash
from benchmarks.tables import Row
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.objective import build_loss
from retrieval.reranker_config import RerankerConfig
from retrieval.train_config import TrainConfig


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(shared=tmp_path / "shared", results=tmp_path / "results", build=tmp_path / "build")


class Answers(Results):
    """Results as if every cell were finished: scores on dev by a rule, made-up values for the queries of test."""

    def __init__(self, score=lambda settings: 0.5, finished=lambda settings: True) -> None:
        super().__init__(folder=None)
        self.score, self.finished = score, finished

    def find(self, name, cell):
        settings = cell.settings
        if not self.finished(settings):
            return None
        if name in MADE_UP:
            return {"values": MADE_UP[name](settings), "machine": MACHINE, "versions": {"torch": "2.13.0"}}
        queries = [f"q{i}" for i in range(5)] if "fold" not in settings else [f"q{settings['fold']}"]
        value = self.score(settings)
        values = {
            "mean": dict.fromkeys(settings["measures"], value),
            "per_query": {measure: dict.fromkeys(queries, value) for measure in settings["measures"]},
            "mistakes": {"queries": 6, "first_is_wrong": 3, "of_the_same_topic": 2},
            "own_topic_negatives": {"mean": 0.25, "queries_with_one": 0.2},
            "loss_first": 0.5,
            "loss_last": 0.125,
        }
        return {"values": values}


LONG = {
    "rerankers": 8.5,
    "distillation": 3,
    "hard_batches": 5.1,
}  # hours: no cut that would leave the question is left to make


def experiments():
    return [import_module(f"benchmarks.{name}").EXPERIMENT for name in NAMES]


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tiny", [False, True])
def test_every_cell_is_sound(name, tiny, options):
    options = Options(shared=options.shared, results=options.results, build=options.build, tiny=tiny)
    experiment = import_module(f"benchmarks.{name}").EXPERIMENT
    assert experiment.name == name
    assert experiment.module == f"benchmarks.{name}"
    plan = experiment.plan(options, Answers())
    assert not plan.waiting
    assert plan.later == 0
    assert len({cell.key for cell in plan.cells}) == len(plan.cells)
    for cell in plan.cells:
        assert json.loads(json.dumps(cell.settings)) == cell.settings
        assert not any(part in json.dumps(cell.settings) for part in (str(options.build), "/"))
        assert len(code_hash(cell.sources)) == 16  # every source exists
        assert cell.seconds > 0
        assert cell.label
        if "train" in cell.settings and name != "rerankers":  # every setting exists and the loss takes its own
            config = TrainConfig.from_dict({**cell.settings["train"], "model": "m", "data": "d", "out": "o"})
            build_loss(config)
            assert config.eval_strategy == ("steps" if name == "hard_batches" else "no")
            assert "benchmarks/quality.py" in cell.sources
            assert "retrieval/training.py" in cell.sources


@pytest.mark.parametrize("name", NAMES)
def test_no_grid_takes_more_than_ninety_minutes(name, options):
    cells = import_module(f"benchmarks.{name}").EXPERIMENT.plan(options, Answers()).cells
    assert sum(cell.seconds for cell in cells) < LONG.get(name, 1.5) * 3_600


def test_every_setting_of_a_reranker_exists(options):
    for cell in rerankers.plan(options, Answers()).cells:
        if "train" in cell.settings:
            config = RerankerConfig.from_dict({**cell.settings["train"], "model": "m", "data": "d", "out": "o"})
            build_loss(config, bounded=False)
            assert (config.eval_strategy, config.num_negatives) == ("no", 7)
            assert "retrieval/reranker_training.py" in cell.sources


def test_a_rerankers_rate_is_the_best_on_dev(options):
    def score(settings):
        return 0.7 if settings["train"]["learning_rate"] == 1e-4 else 0.6

    class Dev(Answers):
        def values(self, name, cell):
            return {"pydocs": {"mean": {"nDCG@10": score(cell.settings)}}}

    assert [rerankers.best_rate(method, options, Dev()) for method in rerankers.TRIED] == [1e-4] * len(rerankers.TRIED)
    assert rerankers.best_rate("listwise", options, Results(options.results)) is None


def test_scifact_gives_every_loss_the_same_trials(options):
    trials = scifact.trials(options)
    assert len(trials) == 6 * 3 * 2
    assert {cell.settings["split"] for cell in trials} == {"dev"}
    assert {cell.settings["seed"] for cell in trials} == {0}
    for loss in scifact.TEMPERATURES:
        mine = [cell.settings["train"] for cell in trials if cell.settings["method"] == loss]
        setting = scifact.TEMPERATURES[loss][0]
        assert len({(train["learning_rate"], train[setting]) for train in mine}) == 6
        assert {train["num_train_epochs"] for train in mine} == {2}


def test_scifact_reads_test_only_after_the_last_trial(options):
    last = scifact.trials(options)[-1].settings
    plan = scifact.plan(options, Answers(finished=lambda settings: settings != last))
    assert {cell.settings["split"] for cell in plan.cells} == {"dev"}
    assert plan.waiting == "the trials on dev"
    assert plan.later > 0


def test_scifact_freezes_the_best_trial_and_gives_the_best_other_losses_three_seeds(options):
    def score(settings):
        train = settings.get("train", {})
        if settings["method"] == "mw" and train.get("learning_rate") == 5e-5 and train["loss.temperature"] == 0.05:
            return 0.9
        if settings["method"] in ("sl_at_k", "softmax_ce"):
            return 0.7 if settings["method"] == "sl_at_k" else 0.6
        return 0.8 if settings["method"] == "infonce" and train["learning_rate"] == 1e-4 else 0.5

    results = Answers(score)
    assert scifact.best_others(options, results) == ["mw", "sl_at_k", "softmax_ce"]
    winners = scifact.winners(options, results)
    assert (winners["mw"]["learning_rate"], winners["mw"]["loss.temperature"]) == (5e-5, 0.05)
    assert (winners["infonce"]["learning_rate"], winners["infonce"]["loss.temperature"]) == (1e-4, 0.01)
    assert winners["bixse"]["learning_rate"] == 2e-5  # equals: the first
    final = [cell.settings for cell in scifact.plan(options, results).cells if cell.settings["stage"] == "test"]
    seeds = {method: sum(s["method"] == method for s in final) for method in scifact.TEMPERATURES}
    assert seeds == {"infonce": 3, "mw": 3, "bixse": 1, "sl_at_k": 3, "decoupled_softmax": 1, "softmax_ce": 3}
    assert {s["search"]["document_max_length"] for s in final if "search" in s} == {256}
    assert {s["train"]["document_max_length"] for s in final if "train" in s} == {128}


def test_medquad_is_one_epoch_of_one_positive_with_three_seeds(options):
    runs = [cell.settings for cell in medquad.plan(options, Answers()).cells if "train" in cell.settings]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    for run in runs:
        assert run["train"]["num_train_epochs"] == 1
        assert "max_steps" not in run["train"]
        assert run["train"]["num_positives"] == 1
        lengths = {"query_max_length": 32, "document_max_length": 128}
        assert run["search"] == lengths
        assert {name: run["train"][name] for name in lengths} == lengths


def test_cystic_fibrosis_takes_its_settings_over_from_scifact(options):
    waiting = cystic_fibrosis.plan(options, Answers(finished=lambda settings: settings["data"] != "scifact"))
    assert [cell.settings["method"] for cell in waiting.cells] == ["BM25", "untrained"]
    assert "run `scifact` first" in waiting.waiting

    def score(settings):
        train = settings.get("train", {})
        return 0.9 if train.get("learning_rate") == 1e-4 and train.get("loss.scale", 30.0) == 30.0 else 0.5

    runs = [cell.settings for cell in cystic_fibrosis.plan(options, Answers(score)).cells if "train" in cell.settings]
    assert len(runs) == 4 * 3 * 5
    assert {run["train"]["learning_rate"] for run in runs} == {1e-4}
    assert {run["train"]["loss.scale"] for run in runs if run["method"] == "bixse, graded"} == {30.0}
    from_grade = {run["method"]: run["train"].get("loss.positive_from") for run in runs}
    assert from_grade["infonce, grade ≥ 1"] == 1
    assert from_grade["infonce, grade ≥ 3"] == 3
    assert from_grade["bixse, graded"] is None


def test_scifact_tells_the_gain_on_abstracts_that_training_has_shown(options):
    documents = [{"_id": f"d{i}", "title": "", "text": f"abstract {i}"} for i in range(6)]
    qrels = {"train": {"t": {"d0": 1, "d1": 1, "d2": 0}}, "test": {f"q{i}": {f"d{i}": 1} for i in range(5)}}
    source = make_collection(options.build / "source", documents=documents, qrels=qrels)
    split = Collection.load(source)
    data.split_folder(split, {name: split.qrels(name) for name in split.splits}, options.build / "splits" / "scifact")
    results = Answers(lambda settings: 0.75 if settings["method"] == "infonce" else 0.5)
    lines = scifact.table(options, results).splitlines()
    found = next(i for i, line in enumerate(lines) if "abstract seen in training (2 queries)" in line)
    assert "abstract not seen (3 queries)" in lines[found]
    gain = "+0.250 [+0.250, +0.250]"
    assert f"| infonce | {gain} | {gain} |" in lines[found:]
    assert not any(line.startswith("| untrained") for line in lines[found:])


def test_pydocs_trials_have_fixed_work_and_the_demo_is_compared(options):
    trials = [cell.settings["train"] for cell in pydocs.trials(options)]
    assert len(trials) == 12
    assert {train["max_steps"] * train["per_device_train_batch_size"] for train in trials} == {93 * 32}
    best = next(train for train in trials if train["loss"] == "softmax_ce" and train["learning_rate"] == 1e-4)
    results = Answers(lambda settings: 0.9 if settings.get("train") == best else 0.5)
    assert pydocs.winner(options, results) == best
    final = [cell.settings for cell in pydocs.plan(options, results).cells if cell.settings["stage"] == "test"]
    assert [run.get("seed") for run in final] == [None, None, 0, 1, 2]
    from retrieval.demo import SETTINGS

    differs = any(SETTINGS.get(name, 1) != best[name] for name in ("loss", "loss.temperature", "learning_rate"))
    assert ("has other settings" in pydocs.table(options, results)) == differs


@pytest.mark.parametrize("name", NAMES)
def test_every_table_can_be_printed(name, options):
    text = import_module(f"benchmarks.{name}").EXPERIMENT.table(options, Answers())
    assert text.startswith("### ")
    assert "| " in text
    assert f"Made with `python -m benchmarks {name}`" in text or name in ("cystic_fibrosis", "distillation")
    assert "Not finished" not in text
    assert "nan" not in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert blocks
    for block in blocks:
        assert {line.count("|") for line in block} == {block[0].count("|")}  # a row has as many columns as its header


# --- tables -----------------------------------------------------------------------------------------------------------


def values(**by_query: float) -> dict:
    return {"per_query": {"nDCG@10": by_query}}


def test_seeds_are_averaged_per_query_and_folds_are_pooled():
    row = Row("m", [[values(a=0.0, b=1.0), values(c=0.5)], [values(c=0.7), values(b=0.0, a=0.4)]])
    assert row.per_query("nDCG@10") == pytest.approx({"a": 0.2, "b": 0.5, "c": 0.6})


def test_other_queries_cannot_be_averaged():
    row = Row("m", [[values(a=0.0)], [values(b=0.0)]])
    with pytest.raises(InputError, match="cannot pair"):
        row.per_query("nDCG@10")


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_mean_of_the_average_is_the_mean_of_the_means(seeds):
    runs = [dict(zip("abcd", seed, strict=True)) for seed in seeds]
    assert np.mean(list(tables.averaged(runs).values())) == pytest.approx(np.mean(seeds))


def rows_of_three() -> list[Row]:
    queries = [f"q{i}" for i in range(40)]
    base = dict.fromkeys(queries, 0.5)
    better = {q: 0.5 + 0.01 * (i % 7 + 1) for i, q in enumerate(queries)}
    return [
        Row("untrained", [[values(**base)]], seeded=False),
        Row("infonce", [[values(**better)]] * 3, note="lr 1"),
        Row("mw", [[values(**better)]], note="lr 2"),
    ]


def test_a_comparison_by_hand():
    lines = tables.comparison(rows_of_three(), ("nDCG@10",), ("untrained", "infonce")).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads, _, untrained, infonce, mw = cells
    by_name = {name: dict(zip(heads, row, strict=True)) for name, row in (("infonce", infonce), ("mw", mw))}
    gain = sum(0.01 * (i % 7 + 1) for i in range(40)) / 40
    assert untrained[heads.index("nDCG@10 [95 %]")] == "0.500 [0.500, 0.500]"
    assert untrained[heads.index("seeds")] == "–"
    assert by_name["infonce"]["seeds"] == "3"
    assert by_name["infonce"]["seeds' range"] == f"{0.5 + gain:.3f}–{0.5 + gain:.3f}"
    assert by_name["infonce"]["nDCG@10 − untrained [95 %]"].startswith(f"{gain:+.3f} [+0.0")
    # every query gained: no tossed sign gives as much, p = 1 / 10,001, and the family is this one test
    assert by_name["infonce"]["p (Holm)"] == "< 0.001"
    assert by_name["mw"]["seeds"] == "1 seed"
    assert by_name["mw"]["p (Holm)"] == "–"
    assert by_name["mw"]["nDCG@10 − infonce [95 %]"] == "+0.000 [+0.000, +0.000]"
    assert by_name["mw"]["settings"] == "lr 2"


def test_holm_counts_each_test_once_and_leaves_single_seeds_out():
    rows = rows_of_three()
    known = {row.name: row for row in rows}
    per_query = {row.name: row.per_query("nDCG@10") for row in rows}
    pairs = [("infonce", "untrained"), ("mw", "untrained"), ("mw", "infonce")]
    assert set(tables.adjusted_p(pairs, known, per_query)) == {("infonce", "untrained")}
    known["mw"] = Row("mw", [rows[2].seeds[0]] * 3)
    found = tables.adjusted_p(pairs, known, per_query)
    # 3 tests: the two smallest p are 1/10,001, times 3 and times 2, and not falling; equal runs have p = 1
    assert found[("infonce", "untrained")] == pytest.approx(3 / 10_001)
    assert found[("mw", "untrained")] == pytest.approx(3 / 10_001)
    assert found[("mw", "infonce")] == 1


def test_rows_without_results_are_left_out():
    rows = [*rows_of_three()[:2], Row("sl_at_k", [])]
    assert "sl_at_k" not in tables.comparison(rows, ("nDCG@10",), ("untrained", "sl_at_k"))
    assert tables.comparison([Row("x", [])], ("nDCG@10",), ()) == ""


def test_speed_shows_the_median_and_range_of_paired_ratios(options):
    lines = speed.table(options, Answers()).splitlines()
    assert "| sentence-transformers | 20.0 | 2.50× [2.00, 3.00] | ≥ 3× | 3 |  |" in lines
    assert "| sentence-transformers, bf16 | 40.0 | 1.00× [1.00, 2.00] | ≥ 1.15× | 3 |  |" in lines
    assert "| ours (auto) | 50.0 | – | – | 3 | 0.99994 |" in lines
    assert "| forward | 10 (17%) | 5 (17%) |" in lines
    assert "| all | 60 | 30 |" in lines
    assert any("a processor, 2 cores, bf16; torch 2.13.0; load when the cells began: up to 0.5." in x for x in lines)


def test_seconds_grow_with_work():
    small = quality.seconds("infonce", documents=100, length=128, pairs=10)
    assert quality.seconds("infonce", documents=100, length=128, pairs=1_000) > small
    assert quality.seconds("infonce", documents=10_000, length=256, pairs=10) > small
    assert quality.seconds("BM25", documents=100, length=128) < small


def test_experiments_name_themselves_once():
    names = [experiment.name for experiment in experiments()]
    assert names == list(NAMES)
    assert names.index("scifact") < names.index("cystic_fibrosis")  # which takes its settings over


def test_torch_dropout_is_put_in_place_and_taken_back():
    from retrieval import attention, training

    before = attention.fast_dropout, training.use_fast_dropout
    with side_by_side.torch_dropout():
        import torch

        assert attention.fast_dropout is torch.nn.functional.dropout
        with training.use_fast_dropout(SimpleNamespace()):
            pass
    assert (attention.fast_dropout, training.use_fast_dropout) == before


def test_seconds_of_different_numbers_of_threads_are_not_compared():
    records = [{"machine": {**MACHINE, "threads": threads}} for threads in (2, 1)]
    assert hard_batches._threads(records[:1]) == ["Seconds are those of 2 threads a run."]
    assert hard_batches._threads(records[1:]) == ["Seconds are those of 1 thread a run, 2 runs side by side."]
    with pytest.raises(InputError, match=r"runs with \[1, 2\] threads"):
        hard_batches._threads(records)
