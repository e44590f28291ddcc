"""Models that would run code, are incomplete, or would silently give other vectors than they should."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from static_files import make_static

from retrieval.errors import InputError
from retrieval.models import load_model, refuse_unsafe

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("sentence_transformers", reason="needs the train extra")
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, tiny_model) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(place, **settings) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(InputError) as caught:
        load_model(str(place), CPU, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
