import json
from pathlib import Path

import pytest
import yaml
from tiny_files import read_jsonl

from indexes.storage import locked
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.model_card import model_card
from retrieval.run_folder import RunFolder, environment, settings_hash
from retrieval.train_config import TrainConfig

DATA = {"data": "a" * 64, "start model": "b" * 64}


def config(out: Path, **values) -> TrainConfig:
    return TrainConfig.from_dict({"model": "m", "data": "d", "out": str(out), **values})


def begun(out: Path, *, resume=False, overwrite=False, fingerprints=DATA, **values) -> RunFolder:
    folder = RunFolder(out)
    assert folder.begin(config(out, **values), fingerprints, resume=resume, overwrite=overwrite) is None
    return folder


def finished(out: Path, **values) -> RunFolder:
    folder = begun(out, **values)
    (out / "checkpoints" / "step-5").mkdir(parents=True)
    (out / "model").mkdir()
    folder.write_metrics([{"step": 1}])
    folder.write_result(steps=5, best_step=5, dev={})
    return folder


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def check(out: Path, *, resume=False, overwrite=False, **values):
    return RunFolder(out).check(config(out, **values), resume=resume, overwrite=overwrite)


# --- a new run --------------------------------------------------------------------------------------------------------


def test_a_new_run_writes_what_it_starts_from(tmp_path):
    out = tmp_path / "runs" / "one"
    assert check(out) is None
    assert not out.exists()  # to check is not to write
    begun(out, learning_rate=1e-4)
    assert contents(out) == ["config.yaml", "data.json", "environment.json"]
    assert TrainConfig.from_dict(yaml.safe_load((out / "config.yaml").read_text())) == config(out, learning_rate=1e-4)
    assert (out / "config.yaml").read_text().startswith("# A training run of Rankwright. To repeat it: ")
    assert json.loads((out / "data.json").read_text()) == DATA
    assert json.loads((out / "environment.json").read_text()) == environment()


def test_an_empty_folder_or_one_with_hidden_files_alone_will_do(tmp_path):
    (tmp_path / ".git").mkdir()
    begun(tmp_path)
    assert (tmp_path / ".git").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["corpus.jsonl", "config.yaml", "model/notes.txt"])
def test_a_folder_that_is_no_run_is_never_touched(tmp_path, name, resume, overwrite):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("model: mine\ndata: d\nout: o\n")
    message = "exclude each other" if resume and overwrite else "exists already and is no training run"
    with pytest.raises(InputError, match=message):
        check(tmp_path, resume=resume, overwrite=overwrite)
    with pytest.raises(InputError):
        begun(tmp_path, resume=resume, overwrite=overwrite)
    assert path.read_text() == "model: mine\ndata: d\nout: o\n"
    assert contents(tmp_path) == sorted({name, str(Path(name).parent)} - {"."})


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: is a file; --out takes a folder"):
        check(tmp_path / "out")
    with pytest.raises(ValueError, match=r"cannot be made, because .*out is a file"):
        check(tmp_path / "out" / "run")


# --- a run that exists ------------------------------------------------------------------------------------------------


def test_an_existing_run_asks_for_resume_or_overwrite(tmp_path):
    finished(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="exists already; use --resume or --overwrite, or another --out"):
        check(tmp_path)
    assert contents(tmp_path) == before


def test_overwrite_deletes_what_a_run_writes_and_nothing_else(tmp_path):
    finished(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "index").mkdir()
    assert check(tmp_path, overwrite=True) is None
    assert (tmp_path / "model").is_dir()  # still there while settings, model and data are looked at
    begun(tmp_path, overwrite=True, seed=1)
    assert contents(tmp_path) == ["config.yaml", "data.json", "environment.json", "index", "notes.txt"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 1


def test_overwrite_does_not_delete_the_model_that_it_starts_from(tmp_path):
    out = tmp_path / "out"
    finished(out)
    for model in (out, out / "model", out / "checkpoints" / "step-5"):
        with pytest.raises(InputError, match="lies in --out, where --overwrite would delete it"):
            check(out, overwrite=True, model=str(model))
    assert check(out, overwrite=True, model=str(tmp_path / "other")) is None


def test_resume_of_a_finished_run_returns_its_result(tmp_path):
    finished(tmp_path)
    found = check(tmp_path, resume=True)
    assert found == {"steps": 5, "best_step": 5, "dev": {}}
    assert RunFolder(tmp_path).begin(config(tmp_path), DATA, resume=True, overwrite=False) == found


def test_resume_keeps_everything_and_removes_what_a_killed_process_left(tmp_path):
    folder = begun(tmp_path)
    folder.write_metrics([{"step": 1}])
    (tmp_path / "checkpoints" / "step-5").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-10.tmp-123-0123abcd").mkdir()
    (tmp_path / "checkpoints" / ".step-10.tmp-123-0123abcd" / "model.safetensors").write_text("half")
    (tmp_path / ".metrics.jsonl.tmp-123-0123abcd").write_text("half")
    begun(tmp_path, resume=True)
    assert contents(tmp_path) == [
        "checkpoints",
        "checkpoints/step-5",
        "config.yaml",
        "data.json",
        "environment.json",
        "metrics.jsonl",
    ]


def test_resume_of_nothing_begins(tmp_path):
    begun(tmp_path / "new", resume=True)
    begun(tmp_path / "new", resume=True)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "data.json"])
def test_a_kill_between_the_first_files_leaves_a_run_to_resume(tmp_path, name):
    """config.yaml is written first; whatever of the others is missing is written again."""
    begun(tmp_path)
    for later in {"config.yaml": ["environment.json", "data.json"], "environment.json": ["data.json"]}.get(name, []):
        (tmp_path / later).unlink()
    begun(tmp_path, resume=True)
    assert contents(tmp_path) == ["config.yaml", "data.json", "environment.json"]


@pytest.mark.parametrize("gone", range(6))
def test_a_kill_while_overwriting_leaves_a_run(tmp_path, gone, monkeypatch):
    finished(tmp_path)
    import retrieval.run_folder as module

    delete, calls = module._delete, []

    def dying(path):
        calls.append(path)
        if len(calls) > gone:
            raise KeyboardInterrupt
        delete(path)

    monkeypatch.setattr(module, "_delete", dying)
    if gone < 5:
        with pytest.raises(KeyboardInterrupt):
            begun(tmp_path, overwrite=True, seed=9)
    monkeypatch.undo()
    # either the whole old run is there as finished, or there is one to begin again; never a result without a model
    assert (tmp_path / "model").is_dir() or not (tmp_path / "result.json").exists()
    begun(tmp_path, overwrite=True, seed=9)


# --- what must not differ on resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 2e-05 in the run to resume and is 0.5 now"),
        ({"data": "e"}, "data was 'd' in the run to resume and is 'e' now"),
        ({"model": "n"}, "model was 'm' in the run to resume and is 'n' now"),
        ({"loss": "mw"}, "loss was 'infonce' in the run to resume and is 'mw' now"),
        ({"loss.temperature": 0.1}, "loss.temperature was None in the run to resume and is 0.1 now"),
        ({"rows": ["a"]}, r"rows was \[\] in the run to resume and is \['a'\] now"),
        ({"query_prompt": ""}, "query_prompt was None in the run to resume and is '' now"),
        ({"max_steps": 7}, "max_steps was -1 in the run to resume and is 7 now"),
        ({"device": "cpu"}, "device was 'auto' in the run to resume and is 'cpu' now"),
        ({"eval_strategy": "no"}, "eval_strategy was 'epoch'"),
    ],
)
def test_other_settings_are_refused_with_both_values(tmp_path, change, message):
    begun(tmp_path)
    with pytest.raises(InputError, match=message):
        check(tmp_path, resume=True, **change)


def test_settings_that_change_no_weight_may_differ_and_are_the_new_ones(tmp_path):
    begun(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "moved")
    begun(tmp_path / "moved", resume=True, save_steps=3, logging_steps=1, save_total_limit=9, eval_full=False)
    assert yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())["save_steps"] == 3


@pytest.mark.parametrize("name", ["data", "start model"])
def test_other_data_or_another_start_model_is_refused_with_both_hashes(tmp_path, name):
    begun(tmp_path)
    changed = DATA | {name: "c" * 64}
    with pytest.raises(InputError, match=f"the {name} has changed since the run began") as caught:
        begun(tmp_path, resume=True, fingerprints=changed)
    assert DATA[name] in str(caught.value)
    assert "c" * 64 in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert json.loads((tmp_path / "data.json").read_text()) == DATA


def test_another_environment_is_a_warning_with_both_values(tmp_path, caplog):
    begun(tmp_path)
    path = tmp_path / "environment.json"
    before = json.loads(path.read_text())
    before["packages"]["torch"], before["threads"] = "1.0", 99
    path.write_text(json.dumps(before))
    begun(tmp_path, resume=True)
    assert "torch was 1.0 when the run began and is " in caplog.text
    assert "threads was 99 when the run began" in caplog.text
    caplog.clear()
    begun(tmp_path, resume=True)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("result.json", "{", r"result.json: is damaged \(.*\); delete it and --resume makes it again"),
        ("result.json", "[]", "result.json: lacks best_step, dev, steps; delete it and --resume"),
        ("data.json", "{", "data.json: is damaged"),
        ("environment.json", "\x00", "environment.json: is damaged"),
    ],
)
def test_damaged_files_are_named_and_the_fix_works(tmp_path, name, text, message):
    finished(tmp_path)
    if name != "result.json":
        (tmp_path / "result.json").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        begun(tmp_path, resume=True)
    (tmp_path / name).unlink()
    begun(tmp_path, resume=True)


def test_a_damaged_config_is_told_with_its_line(tmp_path):
    begun(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text() + "seed: [1\n")
    with pytest.raises(InputError, match=r"config.yaml:\d+: not YAML"):
        check(tmp_path, resume=True)


def test_two_processes_cannot_begin_one_run(tmp_path):
    with locked(tmp_path):
        assert check(tmp_path) is None  # the lock is a hidden file
        with pytest.raises(ValueError, match="in use by process"), locked(tmp_path):
            pass


# --- what is written --------------------------------------------------------------------------------------------------


def test_metrics_are_strict_json_lines(tmp_path):
    folder = begun(tmp_path)
    folder.write_metrics([{"step": 1, "loss": 0.1}, {"step": 2}])
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1}, {"step": 2}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_metrics([{"loss": float("nan")}])
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2


def test_the_model_keeps_the_encoders_prompts_and_lengths(tmp_path, tiny_model):
    encoder = Encoder.load(
        tiny_model, precision="fp32", query_max_length=6, document_max_length=20, query_prompt="query: ", device="cpu"
    )
    folder = begun(tmp_path)
    encoder.save(folder.cleared_model(), card="# card")
    encoder.save(folder.cleared_model(), card="# another card")
    assert (tmp_path / "model" / "README.md").read_text() == "# another card"
    again = Encoder.load(str(tmp_path), precision="fp32", device="cpu")
    assert (again.query, again.document) == (encoder.query, encoder.document)
    assert again.fingerprint()["weights_sha256"] == encoder.fingerprint()["weights_sha256"]


def test_the_card_says_how_and_with_what_result(tiny_model):
    encoder = Encoder.load(tiny_model, precision="fp32", query_prompt="query: ", device="cpu")
    made = config(Path("o"), model="start/model", data="my-data", rows=["mined.jsonl"], seed=3)
    card = model_card(made, encoder, {"temperature": 0.05}, {"best_pool_nDCG@10": 0.51234})
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sentence-transformers"
    for part in (
        "| start model | `start/model` |",
        "`my-data, mined.jsonl`, split `train`",
        "`infonce` (temperature=0.05)",
        "| seed | 3 |",
        "'query: '",
        "| best_pool_nDCG@10 | 0.5123 |",
        "SentenceTransformer(",
    ):
        assert part in card
    assert "not validated" in model_card(made, encoder, {}, {})


def test_the_hash_of_the_settings_leaves_out_what_changes_no_weight():
    one = config(Path("a"))
    assert settings_hash(one) == settings_hash(config(Path("b"), save_steps=7))
    assert settings_hash(one) != settings_hash(config(Path("a"), seed=1))
    assert len(settings_hash(one)) == 12


def test_the_environment_names_versions_and_threads():
    found = environment()
    assert found["packages"]["torch"].startswith("2.")
    assert found["threads"] >= 1
    assert json.dumps(found)
