"""The first tokens of a text are those of the tokenizer's own truncation, whatever is left unread."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.encoder import Encoder
from retrieval.first_tokens import CHARACTERS_PER_TOKEN, first_tokens, splits_at_spaces

pytest.importorskip("sentence_transformers", reason="needs the train extra")

# What BERT's normalisation removes, splits, folds or composes, beside words, punctuation and what is taken for a token.
PIECES = st.one_of(
    st.sampled_from(
        [" ", "  ", "\t", "\n", "\u00a0", "\u2003", "\x1c", "\x00", "\u200b", "\u0301", "é", "Σ", "İ", "中文"]
    ),
    st.sampled_from(
        ["🤗🔥", "ΟΔΟΣ", "otter", "Otters'", "no-such-word", "x" * 120, "[MASK]", "[SEP]", "##otter", "..."]
    ),
    st.sampled_from(["\ufb01", "\ud7a3", "שלום", "0.5"]),
    st.text(max_size=12),
)
TEXTS = st.lists(st.lists(PIECES, max_size=60).map("".join), max_size=4)


@pytest.fixture(scope="session")
def tokenizers(tiny_model, minilm):
    return {
        name: Encoder.load(model, device="cpu").model.tokenizer
        for name, model in (("tiny", tiny_model), ("minilm", minilm))
    }


def truncated(tokenizer, texts, max_length):
    """What transformers gives for whole texts."""
    return [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]


@pytest.mark.parametrize("name", ["tiny", "minilm"])
@given(texts=TEXTS, max_length=st.integers(3, 12))
@settings(deadline=None)
def test_they_are_those_of_the_whole_text(tokenizers, name, texts, max_length):
    tokenizer = tokenizers[name]
    assert splits_at_spaces(tokenizer)
    assert first_tokens(tokenizer, texts, max_length) == truncated(tokenizer, texts, max_length)


class Recorder:
    """A tokenizer that notes the texts which it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def __call__(self, texts, **options):
        self.calls.append(texts)
        return self.tokenizer(texts, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


def test_the_rest_of_a_long_text_is_not_read(tokenizers):
    recorder = Recorder(tokenizers["tiny"])
    long, short, one_word = "otter " * 1_000, "an otter", "x" * 5_000
    texts = [long, short, one_word]
    assert first_tokens(recorder, texts, 6) == truncated(tokenizers["tiny"], texts, 6)
    ((beginning, *others),) = recorder.calls
    assert len(beginning) <= 6 * CHARACTERS_PER_TOKEN < len(long)
    assert others == [short, one_word]


def test_a_beginning_with_too_few_tokens_is_read_again(tokenizers):
    recorder = Recorder(tokenizers["minilm"])
    text = "international " * 100  # one token of 14 characters
    assert first_tokens(recorder, ["the otter", text], 10) == truncated(tokenizers["minilm"], ["the otter", text], 10)
    assert recorder.calls[1:] == [[text]]


def test_a_text_that_just_fits_is_whole(tokenizers):
    text = "otter otter otter otter"
    assert first_tokens(tokenizers["minilm"], [text], 6) == truncated(tokenizers["minilm"], [text], 6)


def test_without_a_length_nothing_is_cut(tokenizers):
    text = "otter " * 300
    (found,) = first_tokens(tokenizers["minilm"], [text], None)
    assert len(found) > 300


def test_other_tokenizers_read_whole_texts(tiny_model):
    """Where a token may reach over a space, or the end is kept, the beginning does not tell."""
    from tokenizers import normalizers, pre_tokenizers

    def changed(change):
        tokenizer = Encoder.load(tiny_model, device="cpu").model.tokenizer
        assert splits_at_spaces(tokenizer)
        change(tokenizer)
        return tokenizer

    def byte_level(tokenizer):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()

    def reordered(tokenizer):
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])

    def from_the_end(tokenizer):
        tokenizer.truncation_side = "left"

    def with_a_space(tokenizer):
        tokenizer.add_tokens(["sea otter"])

    texts = ["a sea otter is an otter of the sea and no other otter " * 30, "sea  otter " * 90]
    for change in (byte_level, reordered, from_the_end, with_a_space):
        tokenizer = changed(change)
        assert not splits_at_spaces(tokenizer), change.__name__
        recorder = Recorder(tokenizer)
        assert first_tokens(recorder, texts, 9) == truncated(tokenizer, texts, 9)
        assert recorder.calls == [texts]
