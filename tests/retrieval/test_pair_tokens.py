"""How pairs become tokens: joined by the tokenizer, with [INT], or marked as in RankT5; and where they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_rerankers import make_classifier, make_t5

from retrieval.errors import InputError

pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("transformers", reason="needs the train extra")

from retrieval.cross_encoder import CrossEncoder
from retrieval.pair_tokens import PairTokenizer, PairTokens

WORDS = st.lists(st.sampled_from(["otter", "heron", "river", "fish", "é", "x-y"]), max_size=40).map(" ".join)


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("pairs")
    return make_classifier(root / "bert", f"{tiny_model}-bert"), make_t5(root / "t5")


@pytest.fixture(scope="module")
def pairs(places):
    """What makes tokenizers of pairs: `pairs("set", max_length=30)`."""
    bert, t5 = places
    loaded = {
        name: CrossEncoder.load(t5 if name.startswith("encoder") else bert, architecture=name, device="cpu").pairs
        for name in ("classifier", "set", "encoder", "encoder_decoder")
    }

    def make(name, **lengths):
        return PairTokenizer(loaded[name].tokenizer, architecture=name, **({"max_length": 64} | lengths))

    return make


def words(maker, query, document):
    """The tokens of one pair, as text."""
    (found,) = maker.tokenize([query], [document])
    return maker.tokenizer.convert_ids_to_tokens(found.ids), found.segments


def test_a_classifier_reads_what_its_tokenizer_joins(pairs):
    found, segments = words(pairs("classifier"), "otter river", "heron")
    assert found == ["[CLS]", "otter", "river", "[SEP]", "heron", "[SEP]"]
    assert segments == [0, 0, 0, 0, 1, 1]


def test_a_set_encoder_reads_the_interaction_token_second(pairs):
    found, segments = words(pairs("set"), "otter river", "heron")
    assert found == ["[CLS]", "[INT]", "otter", "river", "[SEP]", "heron", "[SEP]"]
    assert segments == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("name", ["encoder", "encoder_decoder"])
def test_t5_reads_marked_texts(pairs, name):
    found, segments = words(pairs(name), "what is the otter", "a mammal")
    assert found == ["query", ":", "what", "is", "the", "otter", "document", ":", "a", "mammal", "</s>"]
    assert segments is None


@pytest.mark.parametrize("name", ["classifier", "set", "encoder", "encoder_decoder"])
def test_the_document_is_cut_unless_the_query_fills_half(pairs, name):
    long = "fish " * 90
    short_query, _ = words(pairs(name, max_length=20), "otter river", long)
    assert len(short_query) == 20
    assert short_query.count("otter") == short_query.count("river") == 1
    long_query, _ = words(pairs(name, max_length=20), "otter " * 90, "river")
    assert len(long_query) == 20
    assert long_query.count("river") == 1
    both, _ = words(pairs(name, max_length=20), "otter " * 90, long)
    assert len(both) == 20
    assert abs(both.count("otter") - both.count("fish")) <= 1


@given(st.sampled_from(["classifier", "set", "encoder"]), WORDS, WORDS, st.integers(12, 64), st.integers(1, 20))
def test_no_pair_is_longer_than_asked(pairs, name, query, document, longest, query_longest):
    free = pairs(name).tokenize([query], [document])[0]
    (found,) = pairs(name, max_length=longest, query_max_length=query_longest).tokenize([query], [document])
    assert len(found) <= longest
    assert len(found.segments or found.ids) == len(found.ids)
    if len(free) <= longest and query_longest == 20 and len(query.split()) < 5:
        assert found == free


@pytest.mark.parametrize("name", ["classifier", "set", "encoder"])
def test_a_query_has_a_length_of_its_own(pairs, name):
    found, _ = words(pairs(name, query_max_length=2), "otter river fish", "heron fish fish")
    assert [word for word in found if word in ("otter", "river", "heron", "fish")] == [
        *("otter", "river"),
        *("heron", "fish", "fish"),
    ]
    assert words(pairs(name, query_max_length=3), "otter river fish", "heron") == words(
        pairs(name), "otter river fish", "heron"
    )


def test_without_an_end_nothing_is_cut(pairs):
    assert len(pairs("classifier", max_length=None).tokenize(["otter"], ["fish " * 500])[0]) == 504
    assert len(pairs("encoder", max_length=None).tokenize(["otter"], ["fish " * 500])[0]) == 506


@pytest.mark.parametrize("name", ["classifier", "set", "encoder"])
def test_many_pairs_are_tokenised_as_each_alone(pairs, name):
    queries, texts = ["otter", "heron river", "", "otter"], ["fish " * 70, "", "\x00", "lake"]
    maker = pairs(name, max_length=30, query_max_length=1)
    alone = [pair for query, text in zip(queries, texts, strict=True) for pair in maker.tokenize([query], [text])]
    assert maker.tokenize(queries, texts) == alone
    assert maker.tokenize([], []) == []
    assert all(isinstance(pair, PairTokens) for pair in alone)


def test_lengths_are_the_models_own(places):
    bert, t5 = places
    assert CrossEncoder.load(bert, device="cpu").pairs.max_length == 64  # positions
    assert CrossEncoder.load(t5, device="cpu").pairs.max_length == 40  # the tokenizer's limit
    assert CrossEncoder.load(t5, max_length=200, device="cpu").pairs.max_length == 200  # T5 has no positions to run out


@pytest.mark.parametrize("length", [0, -1, 2.5, "ten"])
def test_a_query_length_that_is_none_is_refused(length):
    with pytest.raises(InputError, match="query_max_length must be a whole number >= 1, got"):
        PairTokenizer(None, architecture="classifier", query_max_length=length)
