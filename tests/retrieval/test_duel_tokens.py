"""A query and two documents as one sequence of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_rerankers import make_t5

transformers = pytest.importorskip("transformers", reason="needs the train extra")

from retrieval.errors import InputError  # noqa: E402
from retrieval.pair_tokens import PairTokenizer  # noqa: E402

WORDS = st.integers(1, 40).map(lambda n: " ".join(["otter"] * n))


@pytest.fixture(scope="module")
def bert(tiny_model):
    return transformers.AutoTokenizer.from_pretrained(f"{tiny_model}-bert")


def duel(tokenizer, query, first, second, **lengths):
    return PairTokenizer(tokenizer, architecture="pairwise", **lengths).tokenize_duels([query], [first], [second])[0]


def texts_of(tokenizer, tokens) -> list[int]:
    """How many tokens each of the three texts has."""
    marks = [place for place, token in enumerate(tokens.ids) if token == tokenizer.sep_token_id]
    assert tokens.ids[0] == tokenizer.cls_token_id
    assert len(marks) == 3
    assert marks[2] == len(tokens) - 1
    return [marks[0] - 1, marks[1] - marks[0] - 1, marks[2] - marks[1] - 1]


def test_the_three_texts_are_joined_as_the_model_joins_two(bert):
    tokens = duel(bert, "what is the otter", "a brown fur", "grey legs")
    expected = "[CLS] what is the otter [SEP] a brown fur [SEP] grey legs [SEP]"
    assert bert.convert_ids_to_tokens(tokens.ids) == expected.split()
    assert tokens.segments == [0] * 6 + [1] * 7
    pair = bert("what is the otter", "a brown fur")
    assert tokens.ids[: len(pair["input_ids"])] == pair["input_ids"]
    assert tokens.segments[: len(pair["input_ids"])] == pair["token_type_ids"]


def test_a_tokenizer_with_two_separators_and_no_segments_keeps_its_own(tmp_path):
    """RoBERTa's `<s> query </s></s> document </s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordLevel({w: n for n, w in enumerate(["<s>", "</s>", "<unk>", "q", "a", "b"])}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", model_input_names=["input_ids", "attention_mask"]
    )
    tokens = duel(fast, "q q", "a", "b b")
    expected = "<s> q q </s> </s> a </s> </s> b b </s>"
    assert fast.convert_ids_to_tokens(tokens.ids) == expected.split()
    assert tokens.segments is None


@given(WORDS, WORDS, WORDS, st.integers(12, 64))
def test_a_duel_is_cut_to_its_length_and_no_more(bert, query, first, second, longest):
    sizes = [len(text.split()) for text in (query, first, second)]
    found = texts_of(bert, duel(bert, query, first, second, max_length=longest))
    room = longest - 4
    assert sum(found) == min(room, sum(sizes))
    assert all(0 < ours <= whole for ours, whole in zip(found, sizes, strict=True))
    if sum(sizes) > room:
        assert found[0] == min(sizes[0], max(room // 3, room - sizes[1] - sizes[2]))
        left = room - found[0]
        for ours, whole in zip(found[1:], sizes[1:], strict=True):
            assert ours >= min(whole, left // 2)


def test_the_query_is_cut_to_its_own_length_first(bert):
    assert texts_of(bert, duel(bert, "otter " * 9, "a " * 3, "a " * 4, query_max_length=2)) == [2, 3, 4]


def test_empty_texts_are_sequences_too(bert):
    assert texts_of(bert, duel(bert, "", "", "")) == [0, 0, 0]
    assert PairTokenizer(bert, architecture="pairwise").tokenize_duels([], [], []) == []


def test_a_tokenizer_that_separates_nothing_is_refused(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_t5(tmp_path / "t5"))
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(InputError, match="puts nothing between two texts"):
        duel(tokenizer, "otter", "a", "b")
