"""Pairs of texts in, float32 scores out: a reranker that reads the query and the document together.

One class serves sequence classifiers, Set-Encoders and T5-type scorers, and reads for pairwise models, of whose duels
`retrieval.pairwise_reranker` makes scores; `retrieval.cross_encoder_models` opens their folders and `rankers` computes.
Speed comes from what also makes the encoder fast: pairs are sorted by length and batched by a budget of tokens, the
next block is tokenised while this one is computed, and the transformer runs in bf16 where the silicon has it, its
output layer in float32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.encoder import BATCH_TOKENS
from retrieval.errors import InputError, require
from retrieval.models import resolve_model, weights_sha256
from retrieval.pair_tokens import PairTokenizer, PairTokens
from retrieval.precision import resolve_device, resolve_precision
from retrieval.progress import progress
from retrieval.textfiles import has_lone_surrogate

if TYPE_CHECKING:
    import torch

    from rankers.pair_scorer import PairScorer

T = TypeVar("T")
Scores = NDArray[np.float32]

BLOCK = 2_048  # pairs that are tokenised and sorted together, rounded up to whole lists; also the look-ahead


class CrossEncoder:
    """A reranker that scores each (query, document) pair by reading both.

    Attributes:
        model: the scorer (`rankers.pair_scorer`); its weights stay float32.
        pairs: makes the tokens of pairs, and knows how long they may be.
        source: where the model was loaded from: a `package:` or hub name, or an absolute path.
        precision: "fp32" or "bf16", that of the transformer's arithmetic in `score`.
        batch_tokens: tokens of one forward pass, padding included.
        has_new_output: whether the output layer was drawn at loading, so that scores mean nothing before a training.
    """

    def __init__(
        self,
        model: PairScorer,
        pairs: PairTokenizer,
        *,
        source: str,
        precision: str = "fp32",
        batch_tokens: int | None = None,
        has_new_output: bool = False,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens must be >= 1, got {batch_tokens}")
        self.model, self.pairs, self.source, self.precision = model.eval(), pairs, source, precision
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cuda"])
        self.has_new_output = has_new_output
        self._inference_model: PairScorer | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        precision: str = "auto",
        device: str = "auto",
        query_max_length: int | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        architecture: str = "auto",
        pooling: str = "first",
        seed: int = 0,
    ) -> CrossEncoder:
        """Load a reranker, or make an untrained one from an encoder; lengths default to the model's own.

        Args:
            model: a folder, a training `--out`, a hub id, or `package:MODULE/SUBPATH`. A sequence classifier has one
                label, whose logit is the score, or two: the second's logit minus the first's. On an encoder a new
                output layer with one label is put.
            precision: auto, fp32 or bf16.
            device: auto, cpu or cuda[:i].
            query_max_length: tokens of the query, special tokens not counted.
            max_length: tokens of a pair, special tokens included. Of a longer pair the longer text is cut at its end
                until it fits, which is the document unless a query fills half of the pair.
            batch_tokens: tokens of one forward pass, padding included; None: what suits the device.
            architecture: auto, classifier, set (a Set-Encoder), pairwise (reads two documents at once), encoder or
                encoder_decoder (T5-type models, which read "Query: … Document: …"); auto is what the folder says.
            pooling: of a new model of the architecture "encoder": first or mean.
            seed: draws the output layer where the folder has none.

        Raises:
            InputError: when the model cannot be found or loaded, gives no score, or a length is not possible.
        """
        require("transformers", "train")
        from retrieval.cross_encoder_models import choose_attention, load_scorer

        where = resolve_device(device)
        place = resolve_model(model)
        loaded = load_scorer(place, where, architecture=architecture, seed=seed, pooling=pooling)
        choose_attention(loaded.scorer, training=False)
        pairs = PairTokenizer.of(
            loaded.scorer,
            loaded.tokenizer,
            query_max_length=loaded.settings.get("query_max_length") if query_max_length is None else query_max_length,
            max_length=max_length,
        )
        return cls(
            loaded.scorer,
            pairs,
            source=str(model) if str(model).startswith("package:") else place,
            precision=resolve_precision(precision, where),
            batch_tokens=batch_tokens,
            has_new_output=loaded.has_new_output,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def reads_lists(self) -> bool:
        """Whether the documents of a list change each other's scores, as in a Set-Encoder."""
        return self.model.architecture == "set"

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the scores, and what is needed to load this reranker again."""
        config = self.model.transformer.config
        return {
            "source": self.source,
            "weights_sha256": weights_sha256(self.model, self.pairs.tokenizer),
            "architecture": self.model.architecture,
            **self.model.settings(),
            "type": config.model_type,
            "heads": config.num_attention_heads,
            "query_max_length": self.pairs.query_max_length,
            "max_length": self.pairs.max_length,
            "precision": self.precision,
        }

    def save(self, folder: Path, *, card: str | None = None) -> None:
        """Publish a folder that `load` opens, with `card` as its README.md; `folder` must not exist.

        A classifier of one label is also what `sentence_transformers.CrossEncoder(folder)` loads, with the same scores
        as long as no query is longer than `query_max_length`, which that library does not have.
        """
        from retrieval.cross_encoder_models import save_scorer

        pairs = self.pairs
        if pairs.max_length is not None:
            pairs.tokenizer.model_max_length = pairs.max_length
        save_scorer(
            self.model,
            pairs.tokenizer,
            folder,
            settings={"query_max_length": pairs.query_max_length},
            card=card or f"# A reranker ({self.model.architecture}) of Rankwright\n\nMade from `{self.source}`.\n",
        )

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Scores]:
        """Return the scores of every query's documents; larger is better.

        Args:
            queries: the texts of the queries.
            documents: for each query the texts of its documents, title + " " + text.

        Returns:
            For each query a (documents,) float32 array of finite numbers, in the order given. They are logits: no
            sigmoid is applied.

        Raises:
            InputError: when something is not a text, the numbers of queries and lists differ, the model's scores
                are not numbers, or it compares documents, which `load_reranker` makes scores of.
        """
        if self.model.architecture == "pairwise":
            raise InputError(f"{self.source} compares documents two by two; open it with retrieval.load_reranker")
        check_texts(queries, documents)
        sizes = [len(texts) for texts in documents]
        found = [np.empty(size, dtype=np.float32) for size in sizes]

        def tokens_of(members: list[int]) -> list[list[PairTokens]]:
            flat_queries = [queries[member] for member in members for _ in documents[member]]
            flat_documents = [text for member in members for text in documents[member]]
            tokens = iter(self.tokenize(flat_queries, flat_documents))
            return [list(islice(tokens, sizes[member])) for member in members]

        with ThreadPoolExecutor(1) as pool, progress(total=sum(sizes), unit="pairs", label="scoring") as bar:
            for members, lists in _ahead(pool, tokens_of, _blocks(sizes)):
                for member, scores in zip(members, self._score_block(lists, bar.update), strict=True):
                    found[member] = scores
        for number, values in enumerate(found):
            if not np.isfinite(values).all():
                query = f"{queries[number][:80]!r}"
                raise InputError(f"{self.source} gives scores that are not numbers for the query {query}")
        return found

    def tokenize(self, queries: Sequence[str], documents: Sequence[str]) -> list[PairTokens]:
        """Return the tokens of each pair (queries[i], documents[i]), cut to the lengths of this reranker."""
        return self.pairs.tokenize(queries, documents)

    def forward(
        self, tokens: Sequence[PairTokens], list_sizes: Sequence[int] | None = None, model: PairScorer | None = None
    ) -> torch.Tensor:
        """Return the (n,) float32 scores of pairs, (n, 2) of duels, in the caller's gradient and autocast mode.

        Args:
            tokens: n pairs.
            list_sizes: how many of them each list has, one list after the other. A Set-Encoder needs them; without,
                and for the other models always, each pair is scored alone.
            model: what computes, such as a copy in another precision; None: `self.model`.
        """
        columns: dict[str, list[list[int]]] = {"input_ids": [pair.ids for pair in tokens]}
        if tokens[0].segments is not None:
            columns["token_type_ids"] = [pair.segments or [] for pair in tokens]
        padded = self.pairs.tokenizer.pad(columns, return_attention_mask=True, return_tensors="pt")
        features = {name: padded[name].to(self.device) for name in (*columns, "attention_mask")}
        scores: torch.Tensor = (model or self.model)(features, list_sizes)
        return scores

    def weights_changed(self) -> None:
        """Forget the bf16 copy of the weights; training calls this before it scores."""
        self._inference_model = None

    def _score_block(self, lists: list[list[PairTokens]], done: Callable[[int], Any]) -> list[Scores]:
        """Return the scores of lists of pairs; those of a Set-Encoder stay together, others are one heap."""
        units = lists if self.reads_lists else [[pair] for pairs in lists for pair in pairs]
        sizes, widths = [len(unit) for unit in units], [max(map(len, unit)) for unit in units]
        found: list[Scores] = [np.empty(0, dtype=np.float32)] * len(units)
        for rows in list_batches(sizes, widths, self.batch_tokens):
            scores = self.infer([pair for row in rows for pair in units[row]], [sizes[row] for row in rows])
            done(len(scores))
            for row, values in zip(rows, _split(scores, [sizes[row] for row in rows]), strict=True):
                found[row] = values
        return _split(np.concatenate(found), [len(pairs) for pairs in lists])

    def infer(self, tokens: Sequence[PairTokens], sizes: Sequence[int] | None = None) -> Scores:
        """Return what `forward` does as an array, without a gradient and in this reranker's precision."""
        import torch

        with torch.inference_mode():
            found: Scores = self.forward(tokens, sizes, self._low_precision()).cpu().numpy()
        return found

    def _low_precision(self) -> PairScorer | None:
        """Return a bf16 copy of the model: casting once beats autocast's cast at every call."""
        from rankers.pair_scorer import low_precision

        if self.precision == "fp32":
            return None
        if self._inference_model is None:
            self._inference_model = low_precision(self.model)
        return self._inference_model


def list_batches(sizes: Sequence[int], widths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions of lists in batches of similar width, widest first, as `retrieval.encoder.token_batches`.

    Args:
        sizes: how many sequences each list has; a list is never divided.
        widths: the tokens of the longest sequence of each list.
        batch_tokens: the most tokens of a batch, padding included; a larger list is a batch of its own.
    """
    batch: list[int] = []
    sequences = 0
    for position in np.argsort(-np.asarray(widths, dtype=np.int64), kind="stable").tolist():
        if batch and (sequences + sizes[position]) * widths[batch[0]] > batch_tokens:
            yield batch
            batch, sequences = [], 0
        batch.append(position)
        sequences += sizes[position]
    if batch:
        yield batch


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[list[int]], T], items: Iterable[list[int]]
) -> Iterator[tuple[list[int], T]]:
    """Yield each item with what `function` makes of it, which is computed while the one before is in use."""
    waiting: deque[tuple[list[int], Future[T]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) == 2:
            ready, result = waiting.popleft()
            yield ready, result.result()
    for ready, result in waiting:
        yield ready, result.result()


def _blocks(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of the lists that are not empty, as many at a time as hold at least BLOCK pairs."""
    block: list[int] = []
    pairs = 0
    for number, size in enumerate(sizes):
        if size:
            block.append(number)
            pairs += size
        if pairs >= BLOCK:
            yield block
            block, pairs = [], 0
    if block:
        yield block


def _split(scores: Scores, sizes: Sequence[int]) -> list[Scores]:
    return np.split(scores, np.cumsum(sizes)[:-1])


def check_texts(queries: Sequence[str], documents: Sequence[Sequence[str]]) -> None:
    """Refuse what are not queries with a list of texts each."""
    if isinstance(queries, str) or isinstance(documents, str):
        raise InputError("got one string; wanted a list of queries, and for each a list of documents")
    if len(queries) != len(documents):
        raise InputError(f"got {len(queries)} queries and {len(documents)} lists of documents; wanted one for each")
    for number, (query, texts) in enumerate(zip(queries, documents, strict=True)):
        _check_text(query, f"query {number} of {len(queries)}")
        if isinstance(texts, str):
            raise InputError(f"the documents of query {number} are one string; wanted a list of texts")
        for position, text in enumerate(texts):
            _check_text(text, f"document {position} of query {number}")


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str) or has_lone_surrogate(text):
        got = "half a surrogate pair" if isinstance(text, str) else type(text).__name__
        raise InputError(f"{what} is {got}; wanted a string of characters")
