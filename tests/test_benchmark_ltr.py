"""The benchmark of feature rankers: its parts share no query, each method has the same trials, the table is by hand."""

import shutil

import numpy as np
import pytest

from benchmarks import ltr
from benchmarks.cells import Options, Results, code_hash
from retrieval.errors import InputError
from retrieval.ltr_config import LtrConfig
from retrieval.svmlight import read_svmlight


class Answers(Results):
    """Results as if every cell were finished: the networks are 0.1 better than LambdaMART on every query."""

    def __init__(self) -> None:
        super().__init__(folder=None)

    def find(self, name, cell):
        value = 0.5 if cell.settings["method"] == ltr.BASELINE else 0.6
        queries = {f"q{number}": value + number / 100 for number in range(10)}
        seeds = [{"per_query": {name: queries for name in ltr.MEASURES}} for _ in range(ltr.SEEDS)]
        return {"values": {"seeds": seeds, "chosen": [{**cell.settings["trials"][0], "dev": 0.5}]}}


def options(shared, tmp_path, **more) -> Options:
    return Options(shared=shared, results=tmp_path / "results", build=tmp_path / "build", **more)


def test_the_parts_of_a_stage_share_no_query_and_lose_none(shared, tmp_path):
    here = options(shared, tmp_path)
    ltr.prepare(here)
    for stage, queries in (("lambdarank test", 50), ("lambdarank folds", 201), ("trecnews folds", 50)):
        tested = []
        for number in range(ltr._parts(stage)):
            train, test = (read_svmlight(ltr._part(here, stage, number) / f"{n}.txt") for n in ("train", "test"))
            assert not set(train.query_ids) & set(test.query_ids)
            tested += test.query_ids
        assert len(tested) == len(set(tested)) == queries


def test_the_pool_has_every_document_of_both_files(shared, tmp_path):
    here = options(shared, tmp_path)
    ltr.prepare(here)
    files = [read_svmlight(shared / "data" / path) for path in ltr.FILES["trecnews"]]
    parts = [read_svmlight(ltr._part(here, "trecnews folds", number) / "test.txt") for number in range(5)]
    assert sum(len(part.labels) for part in parts) == sum(len(one.labels) for one in files)
    found, wanted = (sorted(np.concatenate([p.features[:, 3] for p in every]).tolist()) for every in (parts, files))
    assert found == wanted


def test_every_method_has_as_many_trials_and_valid_settings(tmp_path):
    cells = ltr.plan(options(tmp_path, tmp_path), None).cells
    assert len({cell.key for cell in cells}) == len(cells) == 3 * (1 + 2 * 5)
    assert {len(cell.settings["trials"]) for cell in cells} == {6}
    assert {cell.settings["seeds"] for cell in cells} == {5}
    for cell in cells:
        own = {**cell.settings["fixed"], "scorer": cell.settings["scorer"], "features": "f", "out": "o"}
        for trial in cell.settings["trials"]:
            LtrConfig.from_dict({**own, **trial})
    assert code_hash(cells[0].sources)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"ltr_lambdarank/train.txt: no such file; give the folder that holds data/"):
        ltr.prepare(options(tmp_path, tmp_path))


def test_the_table_by_hand(tmp_path):
    shown = ltr.table(options(tmp_path, tmp_path), Answers())
    rows = [line for line in shown.splitlines() if line.startswith("| mlp, ranknet |")]
    assert len(rows) == 2 * 3
    assert "0.645" in rows[0]
    assert rows[1].count("+0.100 [+0.100, +0.100]") == 4
    assert "Not finished" not in shown


@pytest.mark.slow
def test_a_cell_measures_every_test_query_with_every_seed(shared, tmp_path):
    pytest.importorskip("lightgbm", reason="needs the ltr extra")
    here = options(shared, tmp_path, tiny=True)
    ltr.prepare(here)
    for cell in ltr.plan(here, None).cells:
        if cell.settings["method"] in (ltr.BASELINE, "mlp, ranknet") and cell.settings["stage"] != "lambdarank folds":
            values = ltr.work(cell.settings, here, tmp_path / cell.key)
            queries = 12 if cell.settings["stage"] == "lambdarank test" else 12 + 5
            assert [len(seed["per_query"]["nDCG@5"]) for seed in values["seeds"]] == [queries] * 2
            assert len(values["chosen"]) == (1 if queries == 12 else 5)
            shutil.rmtree(tmp_path / cell.key)
