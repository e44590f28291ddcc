"""How a query and a document become one sequence of tokens, and where it is cut.

Three ways, one for each kind of scorer: as the model's tokenizer joins two texts; the same with [INT] as the second
token, for a Set-Encoder; and "Query: … Document: …" for T5-type models, as RankT5 has it (arXiv:2210.10634). A fourth
joins a query and two documents, `[CLS] query [SEP] first [SEP] second [SEP]`, for a pairwise scorer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING, Any

from retrieval.encoder import positions_of
from retrieval.errors import InputError

if TYPE_CHECKING:
    from rankers.pair_scorer import PairScorer

INTERACTION_TOKEN = "[INT]"
SHORTEST = 12  # tokens that leave room for a word of each text beside "Query:", "Document:" and special tokens


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A query and a document as one sequence.

    Attributes:
        ids: token ids, special tokens included.
        segments: for each token 0 or 1, which text it belongs to; None where the model does not ask.
    """

    ids: list[int]
    segments: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)


class PairTokenizer:
    """Makes the tokens of pairs.

    Attributes:
        tokenizer: the tokenizer of transformers.
        architecture: that of the scorer (`rankers.pair_scorer`), which decides how the texts are joined.
        query_max_length: tokens of the query, special tokens not counted; None: as long as the pair lets it be.
        max_length: tokens of a pair, special tokens included; None: there is no end.
    """

    def __init__(
        self, tokenizer: Any, *, architecture: str, query_max_length: int | None = None, max_length: int | None = None
    ) -> None:
        if query_max_length is not None and (not isinstance(query_max_length, int) or query_max_length < 1):
            raise InputError(f"query_max_length must be a whole number >= 1, got {query_max_length!r}")
        if max_length is not None and max_length < SHORTEST:
            raise InputError(
                f"max_length must be at least {SHORTEST} (special tokens and a word of each text), got {max_length}"
            )
        self.tokenizer, self.architecture = tokenizer, architecture
        self.query_max_length, self.max_length = query_max_length, max_length
        # A fast tokenizer holds its truncation length as state: two threads would cut each other's texts.
        self._tokenizing = Lock()

    @classmethod
    def of(
        cls, scorer: PairScorer, tokenizer: Any, *, query_max_length: int | None, max_length: int | None
    ) -> PairTokenizer:
        """Return the tokenizer of pairs for a scorer; without `max_length` a pair is as long as the model reads.

        Raises:
            InputError: when a length is below 1, or the model has no positions for it.
        """
        positions = positions_of(scorer.transformer)
        if max_length is not None and positions is not None and max_length > positions:
            raise InputError(f"max_length {max_length} exceeds the model's {positions} positions; lower it")
        if max_length is None:
            # A tokenizer without a limit says infinity, or a number with thirty digits.
            longest = min(n for n in (tokenizer.model_max_length, positions, float("inf")) if n is not None)
            max_length = int(longest) if longest < 1e9 else None
        return cls(
            tokenizer,
            architecture=scorer.architecture,
            query_max_length=query_max_length,
            max_length=max_length,
        )

    def tokenize(self, queries: Sequence[str], documents: Sequence[str]) -> list[PairTokens]:
        """Return the tokens of each pair (queries[i], documents[i])."""
        if not queries:
            return []
        with self._tokenizing:
            if self.architecture.startswith("encoder"):
                return self._marked(queries, documents)
            if self.architecture == "set":
                return self._interacting(queries, documents)
            return self._joined(queries, documents, self.max_length)

    def tokenize_duels(self, queries: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]) -> list[PairTokens]:
        """Return the tokens of each query with two documents; both documents are of segment 1.

        What the query leaves of `max_length` is shared by the documents: each has half of it, and what the other does
        not need. The query has a third where the documents fill the rest.
        """
        if not queries:
            return []
        with self._tokenizing:
            before, between, end = self._special_tokens()
            has_segments = "token_type_ids" in self.tokenizer.model_input_names
            made = []
            for query, first, second in zip(*map(self._ids, (queries, firsts, seconds)), strict=True):
                query = query[: self.query_max_length]
                if self.max_length is not None:
                    room = self.max_length - len(before) - 2 * len(between) - len(end)
                    query = query[: max(1, room // 3, room - len(first) - len(second))]
                    room -= len(query)
                    first, second = (
                        first[: max(room // 2, room - len(second))],
                        second[: max(room - room // 2, room - len(first))],
                    )
                head, tail = [*before, *query, *between], [*first, *between, *second, *end]
                made.append(PairTokens(head + tail, [0] * len(head) + [1] * len(tail) if has_segments else None))
        return made

    def _special_tokens(self) -> tuple[list[int], list[int], list[int]]:
        """Return what the tokenizer puts before the first text of a pair, between the two, and behind the second."""
        encoded = self.tokenizer("a", "a", return_special_tokens_mask=True, return_attention_mask=False)
        marked = groupby(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True), lambda one: one[1])
        runs = [[token for token, _ in run] if is_special else None for is_special, run in marked]
        texts = [place for place, run in enumerate(runs) if run is None]
        if len(texts) != 2:
            raise InputError("has a tokenizer that puts nothing between two texts; a pairwise model needs a separator")
        before, between, end = runs[: texts[0]], runs[texts[0] + 1 : texts[1]], runs[texts[1] + 1 :]
        found = tuple([token for run in part for token in run or ()] for part in (before, between, end))
        return found[0], found[1], found[2]

    def _joined(self, queries: Sequence[str], documents: Sequence[str], room: int | None) -> list[PairTokens]:
        has_segments = "token_type_ids" in self.tokenizer.model_input_names
        encoded = self.tokenizer(
            self._cut(queries),
            list(documents),
            truncation="longest_first" if room is not None else False,
            max_length=room,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=has_segments,
        )
        segments = encoded["token_type_ids"] if has_segments else [None] * len(queries)
        return [PairTokens(ids, kinds) for ids, kinds in zip(encoded["input_ids"], segments, strict=True)]

    def _interacting(self, queries: Sequence[str], documents: Sequence[str]) -> list[PairTokens]:
        token = self.tokenizer.convert_tokens_to_ids(INTERACTION_TOKEN)
        return [
            PairTokens([pair.ids[0], token, *pair.ids[1:]], None if pair.segments is None else [0, *pair.segments])
            for pair in self._joined(queries, documents, None if self.max_length is None else self.max_length - 1)
        ]

    def _marked(self, queries: Sequence[str], documents: Sequence[str]) -> list[PairTokens]:
        (before,), (between,), end = self._ids(["Query:"]), self._ids(["Document:"]), [self.tokenizer.eos_token_id]
        pairs = []
        for query, document in zip(self._ids(queries), self._ids(documents), strict=True):
            query = query[: self.query_max_length]
            if self.max_length is not None:
                room = self.max_length - len(before) - len(between) - len(end)
                query = query[: max(1, room // 2, room - len(document))]
                document = document[: max(1, room - len(query))]
            pairs.append(PairTokens([*before, *query, *between, *document, *end], None))
        return pairs

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts without special tokens; equal texts are tokenised once."""
        unique = list(dict.fromkeys(texts))
        rows = self.tokenizer(unique, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        found = dict(zip(unique, rows, strict=True))
        return [found[text] for text in texts]

    def _cut(self, queries: Sequence[str]) -> list[str]:
        """Cut each query behind its last token that counts."""
        if self.query_max_length is None:
            return list(queries)
        unique = list(dict.fromkeys(queries))
        encoded = self.tokenizer(
            unique,
            add_special_tokens=False,
            truncation=True,
            max_length=self.query_max_length,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ends = [spans[-1][1] if len(spans) == self.query_max_length else None for spans in encoded["offset_mapping"]]
        cut = {query: query[:end] for query, end in zip(unique, ends, strict=True)}
        return [cut[query] for query in queries]
