"""The first tokens of long texts without tokenising the rest, where that changes none of them.

A tokenizer that truncates reads the whole text first. BERT's splits at every space before it does anything else, so
that the tokens of a text up to a space are the first of the whole text's: where they suffice, the rest is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CHARACTERS_PER_TOKEN = 8  # read at first; English word pieces have 4 to 5, spaces included


def first_tokens(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> list[list[int]]:
    """Return the token ids of each text, special tokens included, at most `max_length` of each (None: all).

    They are those of the tokenizer's own truncation. Its truncation length is changed: not for two threads at once.

    Args:
        tokenizer: of transformers.
        texts: with their prompts.
        max_length: tokens, special ones included.
    """

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = tokenizer(
            list(texts),
            truncation=max_length is not None,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return ids

    if max_length is None or not splits_at_spaces(tokenizer):
        return tokenize(texts)
    begun = [_beginning(text, CHARACTERS_PER_TOKEN * max_length) for text in texts]
    ids = tokenize(begun)
    # Of long words a beginning has too few tokens.
    whole = [row for row, text in enumerate(texts) if len(begun[row]) < len(text) and len(ids[row]) < max_length]
    for row, found in zip(whole, tokenize([texts[row] for row in whole]), strict=True):
        ids[row] = found
    return ids


def splits_at_spaces(tokenizer: Any) -> bool:
    """Return whether the tokens of a text up to a space are surely the first of the whole text's.

    They are for BERT's normalisation, words and word pieces (MiniLM, MPNet, E5, BGE, GTE, …), if texts are cut at their
    end and no added token holds a space. Others may be so too, but it is not known of them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [type(getattr(backend, part, None)).__name__ for part in ("normalizer", "pre_tokenizer", "model")]
    return (
        parts == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        and tokenizer.truncation_side == "right"
        and not any(character.isspace() for token in tokenizer.get_added_vocab() for character in token)
    )


def _beginning(text: str, characters: int) -> str:
    """Return the words that end within the first `characters`, or the whole text where none does."""
    if len(text) <= characters:
        return text
    end = text.rfind(" ", 0, characters + 1)
    return text[:end] if end > 0 else text
