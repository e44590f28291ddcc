"""Prompts, lengths and fingerprints: what makes two encoders the same."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_files import documents, queries

from retrieval.encoder import Encoder, Side, _side, first_difference
from retrieval.errors import InputError

torch = pytest.importorskip("torch", reason="needs the train extra")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the train extra")

ODD = ["", " ", "\n\t\r", "🤗🔥", "a", "é" * 300, "שלום עולם", "x" * 5_000, "no-such-word " * 80, "\x00", "\u200b"]
TEXTS = [f"{d['title']} {d['text']}" for d in documents()] + list(queries().values()) + ODD


@pytest.fixture(scope="session")
def tiny(tiny_model) -> Encoder:
    return Encoder.load(tiny_model, precision="fp32", device="cpu")


def plain_model(place, **settings):
    return sentence_transformers.SentenceTransformer(str(place), device="cpu", **settings)


def close(found, expected, tolerance=1e-6):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- prompts and lengths ---------------------------------------------------------------------------------------------


def with_prompts(tiny_model, folder, prompts, default=None) -> str:
    shutil.copytree(tiny_model, folder)
    edit(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)
    return str(folder)


def test_prompts_of_the_model(tiny_model, tmp_path):
    place = with_prompts(tiny_model, tmp_path / "m", {"query": "what is ", "document": "the "}, default="query")
    encoder, theirs = Encoder.load(place, precision="fp32", device="cpu"), plain_model(place)
    close(encoder.encode_query(TEXTS), theirs.encode_query(TEXTS))
    close(encoder.encode_document(TEXTS), theirs.encode_document(TEXTS))
    assert (encoder.query.prompt, encoder.document.prompt) == ("what is ", "the ")


def test_prompts_that_are_given(tiny_model, tmp_path):
    place = with_prompts(tiny_model, tmp_path / "m", {"query": "what is ", "document": "the "})
    encoder = Encoder.load(place, precision="fp32", device="cpu", query_prompt="", document_prompt="otter: ")
    theirs = plain_model(place)
    close(encoder.encode_query(TEXTS), theirs.encode(TEXTS, prompt=""))
    close(encoder.encode_document(TEXTS), theirs.encode(TEXTS, prompt="otter: "))


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_a_prompt_of_documents_has_several_names(tiny_model, tmp_path, name):
    place = with_prompts(tiny_model, tmp_path / "m", {"query": "q ", name: "p "})
    encoder = Encoder.load(place, precision="fp32", device="cpu")
    assert (encoder.query.prompt, encoder.document.prompt) == ("q ", "p ")


def test_a_default_prompt_is_for_neither_side(tiny_model, tmp_path):
    """As in encode_query and encode_document of sentence-transformers."""
    place = with_prompts(tiny_model, tmp_path / "m", {"other": "the "}, default="other")
    encoder, theirs = Encoder.load(place, precision="fp32", device="cpu"), plain_model(place)
    assert (encoder.query.prompt, encoder.document.prompt) == ("", "")
    close(encoder.encode_query(TEXTS), theirs.encode_query(TEXTS))
    close(encoder.encode_document(TEXTS), theirs.encode_document(TEXTS))


@pytest.mark.parametrize("length", [3, 10, 64])
def test_lengths_count_special_tokens(tiny_model, length):
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu", document_max_length=length, query_max_length=5)
    theirs = plain_model(tiny_model)
    theirs.max_seq_length = length
    close(encoder.encode_document(TEXTS), theirs.encode(TEXTS))
    theirs.max_seq_length = 5
    close(encoder.encode_query(TEXTS), theirs.encode(TEXTS))
    assert max(map(len, encoder.tokenize(TEXTS, encoder.document))) == length


def test_lengths_of_the_model_by_side(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    edit(folder / "sentence_bert_config.json", query_length=6, document_length=12)
    encoder, theirs = Encoder.load(str(folder), precision="fp32", device="cpu"), plain_model(folder)
    assert (encoder.query.max_length, encoder.document.max_length) == (6, 12)
    close(encoder.encode_query(TEXTS), theirs.encode_query(TEXTS))
    close(encoder.encode_document(TEXTS), theirs.encode_document(TEXTS))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"query_max_length": 2}, "query_max_length must be at least 3 .*, got 2"),
        ({"document_max_length": 65}, "document_max_length 65 exceeds the model's 64 positions"),
        ({"batch_tokens": 0}, "batch_tokens must be >= 1, got 0"),
        ({"precision": "half"}, "unknown precision"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_impossible_settings_are_refused(tiny_model, settings, expected):
    with pytest.raises(InputError, match=expected):
        Encoder.load(tiny_model, **({"device": "cpu"} | settings))


def test_the_positions_of_padding_are_not_for_text(tmp_path, tiny_model):
    """RoBERTa counts its positions from the padding token on: 18 rows are enough for 16 tokens."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    tokenizer = AutoTokenizer.from_pretrained(f"{tiny_model}-bert", model_max_length=18)
    tokenizer.save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=18,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    encoder = Encoder.load(str(tmp_path), precision="fp32", device="cpu")
    assert encoder.document.max_length == 16
    assert np.isfinite(encoder.encode_document(["an otter " * 30])).all()
    with pytest.raises(InputError, match="17 exceeds the model's 16 positions"):
        Encoder.load(str(tmp_path), device="cpu", document_max_length=17)


@pytest.mark.parametrize(
    ("own", "expected"), [(None, None), (float("inf"), None), (int(1e30), None), (512, 512), (64.0, 64)]
)
def test_a_tokenizer_may_have_no_limit(own, expected):
    first = SimpleNamespace(modules=list, config=SimpleNamespace())

    class Model(list):
        max_seq_length, prompts = own, {}

    assert _side(Model([first]), "query", None, None) == Side("", expected)


# --- fingerprints, training ------------------------------------------------------------------------------------------


def test_the_fingerprint_is_json_and_the_same_after_it(tiny):
    fingerprint = tiny.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert first_difference(fingerprint, json.loads(json.dumps(fingerprint))) is None
    assert Path(fingerprint["source"]).is_absolute()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"query_prompt": "q: "}, "query_prompt"),
        ({"document_prompt": "d: "}, "document_prompt"),
        ({"query_max_length": 32}, "query_max_length"),
        ({"document_max_length": 32}, "document_max_length"),
    ],
)
def test_what_decides_vectors_shows_in_the_fingerprint(tiny, tiny_model, settings, name):
    other = Encoder.load(tiny_model, precision="fp32", device="cpu", **settings)
    assert first_difference(tiny.fingerprint(), other.fingerprint()) == (
        name,
        tiny.fingerprint()[name],
        other.fingerprint()[name],
    )
    assert first_difference(tiny.fingerprint(), other.fingerprint(), ignored=[name]) is None


def test_the_modules_are_described_in_our_own_words(tiny, tiny_model):
    """Indexes must outlive renamed settings of the library."""
    assert tiny.fingerprint()["modules"] == ["Transformer type=bert heads=2", "Pooling pooling=mean", "Normalize"]


def test_a_path_is_as_good_as_its_name(tiny, tiny_model):
    assert Encoder.load(Path(tiny_model), device="cpu").fingerprint()["source"] == tiny.fingerprint()["source"]


def test_another_number_of_heads_is_another_model(tiny, tiny_model, tmp_path):
    """The weights are the same bytes."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    edit(folder / "config.json", num_attention_heads=4)
    other = Encoder.load(str(folder), device="cpu", precision="fp32")
    name, ours, theirs = first_difference(tiny.fingerprint(), other.fingerprint())
    assert (name, ours[0], theirs[0]) == ("modules", "Transformer type=bert heads=2", "Transformer type=bert heads=4")


def test_another_pooling_shows_in_the_modules(tiny_model):
    mean, cls = (Encoder.load(f"{tiny_model}-bert", device="cpu", pooling=name) for name in ("mean", "cls"))
    default = Encoder.load(f"{tiny_model}-bert", device="cpu")
    name, *_ = first_difference(mean.fingerprint(), cls.fingerprint())
    assert name == "modules"
    assert first_difference(mean.fingerprint(), default.fingerprint()) is None


def test_place_and_precision_do_not_decide(tiny, tiny_model, tmp_path):
    copy = Encoder.load(str(shutil.copytree(tiny_model, tmp_path / "copy")), precision="bf16", device="cpu")
    assert copy.fingerprint()["source"] != tiny.fingerprint()["source"]
    assert first_difference(tiny.fingerprint(), copy.fingerprint()) is None


def test_changed_weights_are_used_once_they_are_announced(tiny_model):
    encoder = Encoder.load(tiny_model, precision="bf16", device="cpu")
    before = encoder.encode_query(["otter"])
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.mul_(1.5)
    encoder.weights_changed()
    assert not np.allclose(encoder.encode_query(["otter"]), before, atol=1e-3)
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}


def test_forward_carries_gradients_and_gives_float32_under_autocast(tiny_model):
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu")
    tokens = encoder.tokenize(TEXTS[:4], encoder.document)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = encoder.forward(tokens)
    assert vectors.dtype == torch.float32
    vectors[:, 0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.model.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in encoder.model.parameters())
