"""The encoder against plain sentence-transformers, and what must not change its vectors: order, batches, threads."""

import builtins
import json
import shutil
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_files import documents, queries

from retrieval.encoder import BLOCK, Encoder, Side, _side, first_difference, token_batches
from retrieval.errors import InputError

torch = pytest.importorskip("torch", reason="needs the train extra")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the train extra")

ODD = ["", " ", "\n\t\r", "🤗🔥", "a", "é" * 300, "שלום עולם", "x" * 5_000, "no-such-word " * 80, "\x00", "\u200b"]
TEXTS = [f"{d['title']} {d['text']}" for d in documents()] + list(queries().values()) + ODD
# Real English of many lengths that every machine has.
DOCSTRINGS = [text for name in dir(builtins) if (text := getattr(builtins, name).__doc__)]


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


# --- equal to sentence-transformers ----------------------------------------------------------------------------------


def test_minilm_equals_sentence_transformers(minilm):
    from retrieval.models import resolve_model

    encoder = Encoder.load(minilm, precision="fp32", device="cpu")
    theirs = plain_model(resolve_model(minilm))
    texts = DOCSTRINGS[::4] + ODD
    close(encoder.encode_document(texts), theirs.encode_document(texts))
    close(encoder.encode_query(texts[:9]), theirs.encode_query(texts[:9]))
    assert (encoder.dim, encoder.document.max_length, encoder.precision) == (384, 256, "fp32")


def test_bf16_is_close_to_fp32_on_real_texts(minilm):
    texts = DOCSTRINGS[::3]
    exact = Encoder.load(minilm, precision="fp32", device="cpu").encode_document(texts)
    rounded = Encoder.load(minilm, precision="bf16", device="cpu").encode_document(texts)
    assert rounded.dtype == np.float32
    assert np.linalg.norm(rounded, axis=1) == pytest.approx(1, abs=1e-6)  # pooled and normalised in fp32
    assert (exact * rounded).sum(axis=1).min() >= 0.9998
    assert not np.array_equal(exact, rounded)
    # No two texts tie for lack of digits, as they would with vectors in bf16.
    assert len(np.unique(rounded @ rounded[0])) == len(set(texts))


def test_a_sentence_transformers_folder(tiny, tiny_model):
    close(tiny.encode_document(TEXTS), plain_model(tiny_model).encode_document(TEXTS))


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "max", "lasttoken"])
def test_a_plain_encoder_with_every_pooling(tiny_model, pooling):
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    place = f"{tiny_model}-bert"
    modules = [Transformer(place), Pooling(32, pooling_mode=pooling or "mean"), Normalize()]
    theirs = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    encoder = Encoder.load(place, precision="fp32", device="cpu", pooling=pooling)
    close(encoder.encode_document(TEXTS), theirs.encode_document(TEXTS))
    assert encoder.fingerprint()["pooling"] == pooling


def test_a_model_of_many_modules(tiny_model, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm

    theirs = plain_model(tiny_model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        modules = [theirs[0], theirs[1], Dense(32, 12), LayerNorm(12), theirs[2]]
    theirs = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "deep"), create_model_card=False)
    encoder = Encoder.load(str(tmp_path / "deep"), precision="fp32", device="cpu")
    assert encoder.dim == 12
    close(encoder.encode_document(TEXTS), theirs.encode_document(TEXTS))
    low = Encoder.load(str(tmp_path / "deep"), precision="bf16", device="cpu").encode_document(TEXTS)
    assert (low * encoder.encode_document(TEXTS)).sum(axis=1).min() > 0.98  # Dense runs in fp32 behind bf16


def test_static_embeddings_equal_sentence_transformers(tmp_path):
    from test_models import make_static

    encoder = Encoder.load(str(make_static(tmp_path)), device="cpu", precision="bf16")
    texts = ["a b", "a", "", "  ", "b b b c", "zzz", "a " * 100_000]
    theirs = sentence_transformers.SentenceTransformer(modules=[encoder.model[0]], device="cpu")
    close(encoder.encode_document(texts), theirs.encode_document(texts, normalize_embeddings=True))
    assert encoder.precision == "fp32"  # there is nothing to compute in less
    assert not encoder.encode_document([""]).any()
    assert not encoder.encode_document(["", " "]).any()


def test_real_static_embeddings(wordllama):
    encoder = Encoder.load(wordllama, device="cpu")
    vectors = encoder.encode_document(["a small dog", "a little puppy", "the stock market fell"])
    assert vectors.shape == (3, 256)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_matryoshka_vectors_are_cut_and_unit_again(tiny, tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "cut"))
    edit(folder / "config_sentence_transformers.json", truncate_dim=8)
    encoder = Encoder.load(str(folder), precision="fp32", device="cpu")
    cut = tiny.encode_document(TEXTS)[:, :8]
    assert encoder.dim == 8
    close(encoder.encode_document(TEXTS), cut / np.linalg.norm(cut, axis=1, keepdims=True))


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


# --- what must not change a vector -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.permutations(range(len(TEXTS))), st.integers(1, 700))
def test_neither_order_nor_batches_change_a_vector(tiny, order, batch_tokens):
    expected = tiny.encode_document(TEXTS)
    other = Encoder(tiny.model, source="", query=tiny.query, document=tiny.document, batch_tokens=batch_tokens)
    assert np.abs(other.encode_document([TEXTS[i] for i in order]) - expected[order]).max() < 2e-6


def test_neither_order_nor_batches_change_a_vector_of_minilm(minilm):
    encoder = Encoder.load(minilm, precision="fp32", device="cpu")
    texts = DOCSTRINGS[::8] + ODD
    expected = encoder.encode_document(texts)
    for batch_tokens in (1, 300, 100_000):
        encoder.batch_tokens = batch_tokens
        assert np.abs(encoder.encode_document(texts[::-1])[::-1] - expected).max() < 2e-6


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 1_000))
def test_batches_hold_every_text_once_and_keep_the_budget(lengths, budget):
    batches = list(token_batches(lengths, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    widths = [max(lengths[position] for position in batch) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    for batch, width in zip(batches, widths, strict=True):
        assert len(batch) == 1 or len(batch) * width <= budget


def test_every_forward_pass_keeps_the_budget(tiny, monkeypatch):
    shapes = []
    first = tiny.model[0]
    monkeypatch.setattr(
        first, "forward", lambda features, f=first.forward: shapes.append(features["input_ids"].shape) or f(features)
    )
    encoder = Encoder(tiny.model, source="", query=tiny.query, document=tiny.document, batch_tokens=100)
    encoder.encode_document(TEXTS)
    assert sum(rows for rows, _ in shapes) == len(TEXTS)
    assert max(rows * width for rows, width in shapes if rows > 1) <= 100
    assert len(shapes) > 10


def test_empty_and_enormous_input(tiny):
    assert tiny.encode_query([]).shape == (0, 32)
    assert tiny.encode_query([]).dtype == np.float32
    assert tiny.encode_document(()).shape == (0, 32)
    vectors = tiny.encode_document(["otter " * 100_000, "", " "])
    assert vectors.shape == (3, 32)
    assert np.isfinite(vectors).all()
    assert np.array_equal(vectors[1], vectors[2])
    assert np.abs(tiny.encode_document(["otter " * 62])[0] - vectors[0]).max() < 1e-6  # 64 tokens, two of them special


def test_many_blocks_come_back_in_order(tiny):
    texts = [f"{'otter ' * (i % 7)}{i}" for i in range(2 * BLOCK + 3)]
    vectors = tiny.encode_document(texts)
    for row in (0, BLOCK - 1, BLOCK, 2 * BLOCK, len(texts) - 1):
        assert np.abs(vectors[row] - tiny.encode_document([texts[row]])[0]).max() < 2e-6


def test_a_text_without_any_token(tiny_model, tmp_path):
    """Some tokenizers add no special token, so an empty text has none; it must not stop the batch."""
    from tokenizers.processors import TemplateProcessing

    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu")
    encoder.model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert encoder.tokenize(["", "otter"], encoder.query)[0] == [encoder.model.tokenizer.pad_token_id]
    vectors = encoder.encode_query(["", "otter"])
    assert np.isfinite(vectors).all()
    assert np.isfinite(encoder.encode_query([""])).all()


def test_threads_give_the_vectors_of_one(tiny_model):
    """Both sides at once: a fast tokenizer keeps its length as state."""
    encoder = Encoder.load(tiny_model, precision="bf16", device="cpu", query_max_length=4, document_max_length=40)
    work = [(encoder.encode_query, TEXTS[i : i + 9]) for i in range(0, 90, 9)]
    work += [(encoder.encode_document, TEXTS[i : i + 9]) for i in range(0, 90, 9)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: job[0](job[1]), work * 3))
    for (encode, texts), vectors in zip(work * 3, found, strict=True):
        assert np.abs(encode(texts) - vectors).max() < 1e-6


# --- bad input and failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("one text", "got one string; wanted a list"),
        (["a", None], "text 1 of 2 is NoneType; wanted a string"),
        ([1], "text 0 of 1 is int"),
        ([b"bytes"], "text 0 of 1 is bytes"),
        ([["a", "b"]], "text 0 of 1 is list"),
        (["fine", "\ud800"], "text 1 of 2 is half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tiny, texts, expected):
    for encode in (tiny.encode_query, tiny.encode_document):
        with pytest.raises(InputError, match=expected):
            encode(texts)


def test_a_failure_in_the_tokenizer_thread_surfaces_with_its_cause(tiny, monkeypatch):
    def tokenize_or_fail(texts, side):
        if "bad" in texts:
            try:
                {}["inner"]
            except KeyError as error:
                raise RuntimeError("the tokenizer broke on 'bad'") from error
        return Encoder.tokenize(tiny, texts, side)

    monkeypatch.setattr(tiny, "tokenize", tokenize_or_fail)
    blocks = tiny.encode_blocks([["good"], ["also good"], ["bad"], ["never"]], tiny.document)
    assert next(blocks).shape == (1, 32)
    with pytest.raises(RuntimeError, match="the tokenizer broke on 'bad'") as caught:
        list(blocks)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "tokenize_or_fail" in "".join(traceback.format_exception(caught.value))
    assert threading.active_count() < 40


def test_a_failure_of_the_reader_surfaces_too(tiny):
    def blocks():
        yield ["good"]
        raise InputError("the corpus changed", path="corpus.jsonl")

    with pytest.raises(InputError, match="the corpus changed"):
        list(tiny.encode_blocks(blocks(), tiny.document))


def test_blocks_are_read_one_ahead(tiny):
    read = []

    def blocks():
        for number in range(5):
            read.append(number)
            yield [str(number)]

    found = tiny.encode_blocks(blocks(), tiny.document)
    next(found)
    assert read == [0, 1]
    found.close()
    assert list(tiny.encode_blocks([], tiny.document)) == []


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
