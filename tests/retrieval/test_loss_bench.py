"""A comparison from end to end: equal trials, frozen settings, test read last and once, resume."""

import json
import shutil
from pathlib import Path

import pytest
from beir_folder import make_collection, qrels_text
from bench_runs import config, records, untimed
from tiny_files import documents, qrels, queries, rows_file

from retrieval import bench_modes, loss_bench
from retrieval.bench_data import Part
from retrieval.bench_results import UNTRAINED
from retrieval.bench_scores import Embedded
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.head_training import NotFiniteError
from retrieval.loss_bench import bench_losses, planned

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(one_thread, tiny_model, tiny_collection, tmp_path_factory):
    """The settings of a finished comparison, and its results. Read the folder, never write."""
    settings = config(tiny_model, tiny_collection, tmp_path_factory.mktemp("bench") / "out")
    return settings, bench_losses(settings)


@pytest.fixture
def copied(finished, tmp_path):
    """A finished comparison to change."""
    settings, _ = finished
    shutil.copytree(settings.out, tmp_path / "copy")
    return config(settings.model, settings.data, tmp_path / "copy")


def read_json(out: str, name: str):
    return json.loads((Path(out) / name).read_text())


def all_records(out: str) -> list[str]:
    return [untimed(Path(out) / name) for name in ("trials.jsonl", "tests.jsonl")]


def test_every_loss_has_as_many_trials_of_the_same_learning_rates():
    settings = config("m", "d", "o", losses=("infonce", "bixse", "mw"), trials=3, folds=2)
    runs = planned(settings)
    assert len(runs) == len({run.key for run in runs}) == 2 * 3 * 3
    for part in ("fold1", "fold2"):
        for loss in settings.losses:
            own = [run.setting for run in runs if (run.part, run.setting.loss) == (part, loss)]
            assert sorted(setting.learning_rate for setting in own) == [1e-2] * 3
    assert {run.seed for run in runs} == {0}


def test_a_comparison_leaves_its_folder(finished):
    settings, results = finished
    trials, tests = records(settings.out), records(settings.out, "tests.jsonl")
    assert [record["loss"] for record in trials] == ["infonce"] * 2 + ["bixse"] * 2
    assert [(record["loss"], record["seed"]) for record in tests] == [
        (UNTRAINED, 0),
        *(("infonce", seed) for seed in (0, 1)),
        *(("bixse", seed) for seed in (0, 1)),
    ]
    assert all(len(record["curve"]) == 3 for record in trials)  # before the first step, and two measurements
    assert not any("test" in record for record in trials)
    assert read_json(settings.out, "results.json") == json.loads(json.dumps(results))
    assert results["methods"]["bixse"]["measures"]["nDCG@10"]["value"] > 0
    assert not results["methods"]["bixse"]["fitted_on_dev"]
    assert results["methods"]["infonce"]["fitted_on_dev"]


def test_the_best_trial_on_dev_is_frozen(finished):
    settings, results = finished
    frozen = read_json(settings.out, "frozen.json")
    assert frozen["hash"] == results["frozen"]
    for chosen in frozen["settings"]:
        own = [record for record in records(settings.out) if record["loss"] == chosen["loss"]]
        assert chosen["dev"] == max(record["dev"] for record in own)
        assert chosen["key"] == next(record["key"] for record in own if record["dev"] == chosen["dev"])
        used = [record for record in records(settings.out, "tests.jsonl") if record["loss"] == chosen["loss"]]
        assert {record["learning_rate"] for record in used} == {chosen["learning_rate"]}
        assert all(record["loss_settings"] == chosen["loss_settings"] for record in used)


def test_the_first_seed_repeats_its_trial(finished):
    """Same settings, same seed: the run for test is the trial again, before test is read."""
    settings, _ = finished
    frozen = {one["loss"]: one["dev"] for one in read_json(settings.out, "frozen.json")["settings"]}
    for record in records(settings.out, "tests.jsonl"):
        if record["loss"] != UNTRAINED and record["seed"] == 0:
            assert record["dev"] == frozen[record["loss"]]


def test_an_exported_head_measures_what_the_table_says(finished, tiny_collection):
    settings, _ = finished
    collection = Collection.load(tiny_collection)
    encoder = Encoder.load(f"{settings.out}/models/infonce", precision="fp32", device="cpu")
    asked = collection.queries("test")
    corpus = collection.corpus
    vectors = encoder.encode_document(corpus.texts(range(len(corpus))))
    embedded = Embedded(list(asked), encoder.encode_query(list(asked.values())), corpus.ids, vectors)
    found = embedded.measure(collection.qrels("test"), ["nDCG@10"], 100)["nDCG@10"]
    record = next(r for r in records(settings.out, "tests.jsonl") if (r["loss"], r["seed"]) == ("infonce", 0))
    assert found == pytest.approx(record["test"]["nDCG@10"], abs=1e-6)


def test_corrupt_test_judgements_change_nothing_before_the_last_stage(finished, tiny_model, tmp_path):
    """All but the clock of trials and choice is the same, byte for byte."""
    settings, results = finished
    splits = qrels()
    wrong = {query: {"comet-0": 1} for query in splits["test"]}
    data = make_collection(tmp_path / "wrong", documents(), queries(), splits | {"test": wrong})
    other = config(tiny_model, data, tmp_path / "out")
    changed = bench_losses(other)
    assert untimed(tmp_path / "out" / "trials.jsonl") == untimed(Path(settings.out) / "trials.jsonl")
    assert (tmp_path / "out" / "frozen.json").read_bytes() == (Path(settings.out) / "frozen.json").read_bytes()
    assert changed["methods"]["infonce"]["measures"] != results["methods"]["infonce"]["measures"]


def test_unreadable_test_judgements_stop_the_last_stage_alone(tiny_model, tmp_path):
    data = make_collection(
        tmp_path / "c", documents(), queries(), qrels() | {"test": "query-id\tcorpus-id\tscore\nx\n"}
    )
    settings = config(tiny_model, data, tmp_path / "out")
    with pytest.raises(InputError, match=r"test\.tsv:2"):
        bench_losses(settings)
    assert len(records(settings.out)) == 4
    assert (tmp_path / "out" / "frozen.json").is_file()
    assert not (tmp_path / "out" / "tests.jsonl").exists()
    # mended, the comparison goes on from there
    (data / "qrels" / "test.tsv").write_text(qrels_text(qrels()["test"]))
    assert bench_losses(settings, resume=True)["queries"] == 12


def test_test_is_read_once_for_each_run_of_the_last_stage(tiny_model, tiny_collection, tmp_path, monkeypatch):
    reads: list[int] = []
    make = loss_bench.make_parts

    def counted(*arguments):
        def test_of(part):
            return lambda: reads.append(len(records(tmp_path / "out"))) or part.test()

        return [Part(part.name, part.folder, part.fingerprint, test_of(part)) for part in make(*arguments)]

    monkeypatch.setattr(loss_bench, "make_parts", counted)
    bench_losses(config(tiny_model, tiny_collection, tmp_path / "out"))
    assert reads == [4] * 5  # all four trials had finished: the untrained model, two losses × two seeds


@pytest.mark.parametrize("after", [1, 3, 5, 8])
def test_an_interrupted_comparison_goes_on(finished, tiny_model, tiny_collection, tmp_path, monkeypatch, after):
    """Stopped in its n-th run, whichever stage that is, it ends with the same records and trains nothing twice."""
    settings, results = finished
    train, runs = bench_modes.train_head, []

    def failing(*arguments, **more):
        runs.append(1)
        if len(runs) == after:
            raise KeyboardInterrupt
        return train(*arguments, **more)

    monkeypatch.setattr(bench_modes, "train_head", failing)
    mine = config(tiny_model, tiny_collection, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        bench_losses(mine)
    again = bench_losses(mine, resume=True)
    assert len(runs) == 4 + 4 + 1  # trials, runs for test, and the one that was lost
    assert untimed(tmp_path / "out" / "trials.jsonl") == untimed(Path(settings.out) / "trials.jsonl")
    assert untimed(tmp_path / "out" / "tests.jsonl") == untimed(Path(settings.out) / "tests.jsonl")
    for name, one in again["methods"].items():
        assert one["measures"] == results["methods"][name]["measures"]


def test_a_finished_comparison_trains_nothing_again(copied, monkeypatch):
    monkeypatch.setattr(bench_modes, "train_head", lambda *_, **__: pytest.fail("trained again"))
    before = all_records(copied.out)
    bench_losses(copied, resume=True)
    assert all_records(copied.out) == before


def test_frozen_settings_take_no_other_choice(copied):
    """A trial that is changed afterwards would be chosen with test in view."""
    lines = records(copied.out)
    chosen = {one["key"] for one in read_json(copied.out, "frozen.json")["settings"]}
    next(record for record in lines if record["key"] not in chosen)["dev"] = 0.999
    text = "".join(json.dumps({**record, "seconds": 1.0, "peak_mb": 1.0}) + "\n" for record in lines)
    (Path(copied.out) / "trials.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"settings were frozen as .*, and test was read"):
        bench_losses(copied, resume=True)


def test_a_frozen_comparison_takes_no_further_trial(copied):
    lines = (Path(copied.out) / "trials.jsonl").read_text().splitlines(keepends=True)
    (Path(copied.out) / "trials.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="is frozen, but trials are missing"):
        bench_losses(copied, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ("infonce", "mw")}, "losses was .*bixse.* in the comparison to resume"),
        ({"seeds": 3}, "seeds was 2 in the comparison to resume and is 3 now"),
        ({"sides": "both"}, "sides was 'query'"),
    ],
)
def test_other_settings_do_not_resume(copied, changes, message):
    other = config(copied.model, copied.data, copied.out, **changes)
    with pytest.raises(InputError, match=message):
        bench_losses(other, resume=True)


def test_other_data_do_not_resume(copied, tiny_model, tmp_path):
    splits = qrels()
    first = next(iter(splits["train"]))
    data = make_collection(tmp_path / "c", documents(), queries(), splits)
    mine = config(tiny_model, data, tmp_path / "out", losses=("infonce",), trials=1, seeds=1)
    bench_losses(mine)
    splits["train"].pop(first)
    (data / "qrels" / "train.tsv").write_text(qrels_text(splits["train"]))
    with pytest.raises(InputError, match="the data has changed since the comparison began"):
        bench_losses(mine, resume=True)


def test_an_existing_folder_is_refused_and_replaced_when_asked(copied, tmp_path):
    with pytest.raises(InputError, match="use --resume or --overwrite"):
        bench_losses(copied)
    with pytest.raises(InputError, match="exclude each other"):
        bench_losses(copied, resume=True, overwrite=True)
    less = config(copied.model, copied.data, copied.out, losses=("infonce",), trials=1, seeds=1)
    bench_losses(less, overwrite=True)
    assert len(records(copied.out)) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no comparison of losses"):
        bench_losses(config(copied.model, copied.data, tmp_path / "other"), overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_labels_that_the_data_lack_are_one_line_and_leave_the_place_free(tiny_model, tiny_collection, tmp_path):
    bad = config(tiny_model, tiny_collection, tmp_path / "out", losses=("infonce", "kl_div"))
    with pytest.raises(InputError, match="kl_div cannot be trained here: none of the 36 training rows has a teacher's"):
        bench_losses(bad)
    good = config(tiny_model, tiny_collection, tmp_path / "out", losses=("infonce",), trials=1, seeds=1)
    assert bench_losses(good)["queries"] == 12


def test_a_teachers_rows_suit_its_losses(tiny_model, tiny_collection, tmp_path):
    rows = [
        {
            "query_id": query,
            "query": queries()[query],
            "positive_ids": [max(grades, key=grades.get)],
            "negative_ids": [min(grades, key=grades.get)],
            "positive_scores": [0.9],
            "negative_scores": [0.1],
        }
        for query, grades in qrels()["train"].items()
    ]
    path = rows_file(tmp_path / "rows.jsonl", rows)
    settings = config(
        tiny_model, tiny_collection, tmp_path / "out", losses=("kl_div", "margin_mse"), rows=(str(path),), seeds=1
    )
    assert bench_losses(settings)["methods"]["margin_mse"]["trials"] == 2


def test_a_loss_whose_trials_all_fail_is_told(tiny_model, tiny_collection, tmp_path, monkeypatch):
    train = bench_modes.train_head

    def failing(head, loss, *arguments, **more):
        if loss.name == "bixse":
            raise NotFiniteError("the loss is nan at step 1")
        return train(head, loss, *arguments, **more)

    monkeypatch.setattr(bench_modes, "train_head", failing)
    settings = config(tiny_model, tiny_collection, tmp_path / "out")
    with pytest.raises(InputError, match=r"every trial of bixse failed \(the loss is nan at step 1\)"):
        bench_losses(settings)
    assert [record["dev"] is None for record in records(settings.out)] == [False, False, True, True]


def test_folds_and_noise_together(tiny_model, tmp_path):
    every = {query: grades for split in qrels().values() for query, grades in split.items()}
    data = make_collection(tmp_path / "c", documents(), queries(), {"test": every})
    settings = config(
        *(tiny_model, data, tmp_path / "out"),
        folds=3,
        label_noise=0.2,
        heads="mlp",
        sides="both",
        seeds=1,
        trials=1,
        measures=("nDCG@20", "P@5"),
    )
    results = bench_losses(settings)
    assert results["queries"] == len(every)
    assert [record["part"] for record in records(settings.out)] == ["fold1"] * 2 + ["fold2"] * 2 + ["fold3"] * 2
    assert set(results["methods"]["infonce"]["chosen"]) == {"fold1", "fold2", "fold3"}
    assert (tmp_path / "out" / "models" / "bixse-fold2" / "model" / "modules.json").is_file()


def test_whole_encoders_are_compared_by_the_training_loop(tiny_model, tiny_collection, tmp_path):
    settings = config(
        *(tiny_model, tiny_collection, tmp_path / "out"),
        heads=None,
        trials=1,
        seeds=1,
        learning_rates=(2e-3,),
        loss_settings={"bixse.bias": "learned"},
    )
    results = bench_losses(settings)
    trials = records(settings.out)
    assert [len(record["curve"]) for record in trials] == [3, 3]
    assert results["methods"]["infonce"]["measures"]["nDCG@10"]["value"] > 0
    assert (tmp_path / "out" / "models" / "infonce" / "model" / "modules.json").is_file()
    assert not list((tmp_path / "out" / "runs").glob("[!.]*"))  # what was only tried is gone
    again = bench_losses(settings, resume=True)
    assert again["methods"] == results["methods"]
