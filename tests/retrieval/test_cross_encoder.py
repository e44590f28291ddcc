"""The cross-encoder against plain sentence-transformers, and what must not change its scores: order and batches."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_files import documents, queries
from tiny_rerankers import make_classifier, make_t5

from retrieval.encoder import token_batches
from retrieval.errors import InputError

torch = pytest.importorskip("torch", reason="needs the train extra")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the train extra")

from retrieval import cross_encoder  # noqa: E402
from retrieval.cross_encoder import CrossEncoder, list_batches  # noqa: E402
from retrieval.reranking import Reranker  # noqa: E402

TEXTS = [f"{d['title']} {d['text']}" for d in documents()]
QUERIES = list(queries().values())[:5]
LISTS = [TEXTS[:7], TEXTS[7:8], [], TEXTS[8:20], ["", " ", "🤗🔥", "é" * 300, "otter " * 200, "\x00"]]
PLAIN = {"precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model):
    """One folder of each architecture."""
    root = tmp_path_factory.mktemp("rerankers")
    plain = f"{tiny_model}-bert"
    found = {"classifier": make_classifier(root / "one", plain), "two": make_classifier(root / "two", plain, labels=2)}
    for name, start, settings in (
        ("set", found["classifier"], {"architecture": "set"}),
        ("encoder_decoder", make_t5(root / "t5"), {}),
        ("encoder", root / "t5", {"architecture": "encoder", "pooling": "mean"}),
    ):
        CrossEncoder.load(start, **settings, **PLAIN).save(root / name)
        found[name] = root / name
    return found


@pytest.fixture(scope="module")
def tiny(folders):
    return CrossEncoder.load(folders["classifier"], **PLAIN)


@pytest.fixture(scope="module")
def together(folders):
    return CrossEncoder.load(folders["set"], **PLAIN)


ARCHITECTURES = ("classifier", "two", "set", "encoder_decoder", "encoder")


def close(found, expected, tolerance=1e-5):
    assert [len(scores) for scores in found] == [len(scores) for scores in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - np.asarray(theirs)).max(initial=0) <= tolerance


def predicted(folder, lists, **settings):
    """What sentence-transformers scores."""
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu", **settings)
    pairs = [(query, text) for query, texts in zip(QUERIES, lists, strict=True) for text in texts]
    return model.predict(pairs, show_progress_bar=False)


# --- equal to sentence-transformers ----------------------------------------------------------------------------------


def test_a_saved_classifier_gives_the_same_scores_in_sentence_transformers(tiny, tmp_path):
    found = tiny.score(QUERIES, LISTS)
    tiny.save(tmp_path / "saved")
    expected = predicted(tmp_path / "saved", LISTS)
    assert np.abs(np.concatenate(found) - expected).max() <= 1e-5
    assert expected.std() > 0.1
    close(CrossEncoder.load(tmp_path / "saved", **PLAIN).score(QUERIES, LISTS), found, 0)


def test_what_sentence_transformers_saved_gives_its_logits(folders, tmp_path):
    """Its own folders ask for a sigmoid; ours are the logits before it."""
    model = sentence_transformers.CrossEncoder(str(folders["classifier"]), device="cpu")
    model.save(str(tmp_path / "theirs"))
    found = np.concatenate(CrossEncoder.load(tmp_path / "theirs", **PLAIN).score(QUERIES, LISTS))
    assert np.abs(1 / (1 + np.exp(-found)) - predicted(tmp_path / "theirs", LISTS)).max() <= 1e-5


def test_two_labels_are_a_difference_of_logits(folders):
    found = np.concatenate(CrossEncoder.load(folders["two"], **PLAIN).score(QUERIES, LISTS))
    logits = predicted(folders["two"], LISTS)
    assert np.abs(found - (logits[:, 1] - logits[:, 0])).max() <= 1e-5


def test_minilm_gets_an_output_layer_and_saves_for_sentence_transformers(minilm, tmp_path):
    reranker = CrossEncoder.load(minilm, max_length=64, **PLAIN)
    found = reranker.score(QUERIES, LISTS)
    reranker.save(tmp_path / "saved")
    assert np.abs(np.concatenate(found) - predicted(tmp_path / "saved", LISTS)).max() <= 1e-5
    close(CrossEncoder.load(minilm, max_length=64, **PLAIN).score(QUERIES, LISTS), found, 0)
    others = CrossEncoder.load(minilm, max_length=64, seed=1, **PLAIN).score(QUERIES, LISTS)
    assert np.abs(np.concatenate(others) - np.concatenate(found)).min() > 0


# --- what must not change a score ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batches_and_blocks_change_nothing(folders, name, monkeypatch):
    whole = CrossEncoder.load(folders[name], batch_tokens=1_000_000, **PLAIN).score(QUERIES, LISTS)
    monkeypatch.setattr(cross_encoder, "BLOCK", 3)
    close(CrossEncoder.load(folders[name], batch_tokens=70, **PLAIN).score(QUERIES, LISTS), whole)
    assert np.concatenate(whole).std() > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_order_of_documents_changes_nothing(folders, name):
    reranker = CrossEncoder.load(folders[name], **PLAIN)
    forward = reranker.score(QUERIES, LISTS)
    backward = reranker.score(QUERIES[::-1], [texts[::-1] for texts in LISTS[::-1]])
    close([scores[::-1] for scores in backward[::-1]], forward)


def test_only_in_a_set_encoder_do_documents_change_each_others_scores(tiny, together):
    other = [TEXTS[:1] + TEXTS[30:33]]
    for reranker, reads_lists in ((tiny, False), (together, True)):
        assert reranker.reads_lists is reads_lists
        (found,), (changed,) = reranker.score(QUERIES[:1], [TEXTS[:4]]), reranker.score(QUERIES[:1], other)
        assert (abs(found[0] - changed[0]) > 1e-4) is np.bool_(reads_lists)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_folder_gives_the_same_scores(folders, name, tmp_path):
    reranker = CrossEncoder.load(folders[name], query_max_length=3, max_length=30, **PLAIN)
    reranker.save(tmp_path / "saved")
    again = CrossEncoder.load(tmp_path / "saved", **PLAIN)
    close(again.score(QUERIES, LISTS), reranker.score(QUERIES, LISTS), 0)
    ours, theirs = reranker.fingerprint(), again.fingerprint()
    assert (ours.pop("source"), theirs.pop("source")) == (str(folders[name]), str(tmp_path / "saved"))
    assert ours == theirs
    assert sorted(path.suffix for path in (tmp_path / "saved").iterdir() if path.suffix not in (".json", ".md")) == [
        ".safetensors"
    ] * (2 if name == "encoder" else 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_is_near_and_training_is_seen(folders, name):
    reranker = CrossEncoder.load(folders[name], precision="bf16", device="cpu")
    exact = np.concatenate(CrossEncoder.load(folders[name], **PLAIN).score(QUERIES, LISTS))
    found = np.concatenate(reranker.score(QUERIES, LISTS))
    assert 0 < np.abs(found - exact).max() < 0.1 * max(1, np.abs(exact).max())
    with torch.no_grad():
        for weight in reranker.model.parameters():
            weight.mul_(1.5)
    close([np.concatenate(reranker.score(QUERIES, LISTS))], [found], 0)
    reranker.weights_changed()
    assert np.abs(np.concatenate(reranker.score(QUERIES, LISTS)) - found).max() > 0


def test_two_threads_score_as_one(tiny):
    expected = tiny.score(QUERIES, LISTS)
    start = threading.Barrier(3)

    def score(_):
        start.wait()
        return tiny.score(QUERIES, LISTS)

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(score, range(3)):
            close(found, expected)


def test_nothing_to_score(tiny, together):
    for reranker in (tiny, together):
        assert reranker.score([], []) == []
        assert [scores.shape for scores in reranker.score(["a", "b"], [[], []])] == [(0,), (0,)]
    assert isinstance(tiny, Reranker)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_forward_gives_gradients_and_the_scores(folders, name):
    from retrieval.cross_encoder_models import choose_attention

    reranker = CrossEncoder.load(folders[name], **PLAIN)
    expected = np.concatenate(reranker.score(QUERIES[:2], LISTS[:2]))
    choose_attention(reranker.model, training=True)
    tokens = reranker.tokenize(QUERIES[:1] * 7 + QUERIES[1:2], TEXTS[:8])
    scores = reranker.forward(tokens, [7, 1])
    assert scores.detach().numpy() == pytest.approx(expected, abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = reranker.forward(tokens, [7, 1])
    assert low.dtype == torch.float32
    low.sum().backward()
    assert all(weight.grad is not None for weight in reranker.model.parameters())


# --- batches of lists ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=20), st.integers(1, 200))
def test_batches_of_lists_keep_the_budget(lists, budget):
    sizes, widths = [size for size, _ in lists], [width for _, width in lists]
    batches = list(list_batches(sizes, widths, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lists)))
    for batch in batches:
        assert len(batch) == 1 or sum(sizes[i] for i in batch) * max(widths[i] for i in batch) <= budget
    assert all(min(widths[i] for i in a) >= max(widths[i] for i in b) for a, b in pairwise(batches))
    assert list(list_batches([1] * len(lists), widths, budget)) == list(token_batches(widths, budget))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "documents", "message"),
    [
        ("otter", [["a"]], "got one string; wanted a list of queries"),
        (["otter"], "a", "got one string"),
        (["otter"], ["a"], "the documents of query 0 are one string; wanted a list of texts"),
        (["otter"], [["a"], ["b"]], "got 1 queries and 2 lists of documents; wanted one for each"),
        (["otter", None], [[], []], "query 1 of 2 is NoneType; wanted a string"),
        (["otter"], [["a", 3]], "document 1 of query 0 is int; wanted a string"),
        (["\ud800"], [["a"]], "query 0 of 1 is half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused(tiny, queries, documents, message):
    with pytest.raises(InputError, match=message):
        tiny.score(queries, documents)


def test_scores_that_are_not_numbers_are_refused(folders):
    reranker = CrossEncoder.load(folders["classifier"], **PLAIN)
    with torch.no_grad():
        reranker.model.transformer.classifier.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="gives scores that are not numbers for the query 'what is a swimming"):
        reranker.score(QUERIES, LISTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_tokens": 0}, "batch_tokens must be >= 1, got 0"),
        ({"max_length": 5}, "max_length must be at least 12 .*, got 5"),
        ({"max_length": 65}, "max_length 65 exceeds the model's 64 positions; lower it"),
        ({"query_max_length": 0}, "query_max_length must be a whole number >= 1, got 0"),
        ({"precision": "fp64"}, "unknown precision 'fp64'"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"architecture": "sets"}, "unknown architecture 'sets'; did you mean 'set'?"),
    ],
)
def test_settings_that_cannot_be_are_refused(folders, settings, message):
    with pytest.raises(InputError, match=message):
        CrossEncoder.load(folders["classifier"], **settings)
