"""The encoder against plain sentence-transformers, and what must not change its vectors: order, batches, threads."""

import builtins
import json
import shutil
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from static_files import make_static
from tiny_files import documents, queries

from retrieval.encoder import BLOCK, Encoder, token_batches
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


def test_the_hash_of_the_weights_follows_what_a_trainer_does(tiny_model):
    encoder = Encoder.load(tiny_model, device="cpu")
    before = encoder.fingerprint()["weights_sha256"]
    assert encoder.fingerprint()["weights_sha256"] == before
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=1e-2, fused=True)
    encoder.forward([[1, 2, 3]]).sum().backward()
    optimizer.step()
    stepped = encoder.fingerprint()["weights_sha256"]
    assert stepped != before
    encoder.model.load_state_dict(Encoder.load(tiny_model, device="cpu").model.state_dict())
    assert encoder.fingerprint()["weights_sha256"] == before
    next(encoder.model.parameters()).data[0, 0] += 0.5
    assert encoder.fingerprint()["weights_sha256"] not in (before, stepped)
