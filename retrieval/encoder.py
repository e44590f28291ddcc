"""Texts in, float32 embeddings out: the one way in which queries and documents become vectors.

Speed comes from four things that change nothing: texts are sorted by length and batched by a budget of tokens, of long
ones only what is read is tokenised, the next block while this one is computed, and the transformer runs in bf16 where
the silicon has it.
Pooling, everything after it, and the vectors are float32 (cosine to fp32 >= 0.9998 for MiniLM-L6).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.first_tokens import first_tokens
from retrieval.models import load_model, resolve_model, save_model, weights_sha256
from retrieval.precision import resolve_device, resolve_precision
from retrieval.progress import progress
from retrieval.textfiles import has_lone_surrogate

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Embeddings = NDArray[np.float32]

# Tokens of one forward pass, padding included: what fits a CPU's caches, and what fills a GPU.
BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}
BLOCK = 2_048  # texts that are tokenised and sorted together; also the look-ahead


@dataclass(frozen=True, slots=True)
class Side:
    """How one side (query or document) is read: its prompt and its length in tokens, special tokens included."""

    prompt: str
    max_length: int | None


class Encoder:
    """A dual encoder: a sentence-transformers model with a query side and a document side.

    Attributes:
        model: the sentence-transformers model; its weights stay float32.
        query, document: prompt and length of each side.
        precision: "fp32" or "bf16", that of the transformer's arithmetic; static embeddings have none.
        source: where the model was loaded from: a `package:` or hub name, or an absolute path.
        pooling: the pooling that was asked for; None where the model's own is used.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        source: str,
        query: Side,
        document: Side,
        precision: str = "fp32",
        pooling: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens must be >= 1, got {batch_tokens}")
        self.model, self.source = model.eval(), source
        self.query, self.document, self.pooling = query, document, pooling
        self._is_static = not hasattr(model[0], "auto_model")
        self.precision = "fp32" if self._is_static else precision
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"])
        self._inference_transformer: torch.nn.Module | None = None
        self._weights: tuple[list[float], str] | None = None  # their sums, and their hash
        # A fast tokenizer holds its truncation length as state: two threads would cut each other's texts.
        self._tokenizing = Lock()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        precision: str = "auto",
        device: str = "auto",
        query_max_length: int | None = None,
        document_max_length: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        pooling: str | None = None,
        batch_tokens: int | None = None,
    ) -> Encoder:
        """Load an encoder; prompts and lengths default to the model's own.

        Args:
            model: a folder, a training `--out`, a hub id, or `package:MODULE/SUBPATH`.
            precision: auto, fp32 or bf16.
            device: auto, cpu or cuda[:i].
            query_max_length, document_max_length: tokens, special ones included.
            query_prompt, document_prompt: text put before every query or document.
            pooling: for a plain HF encoder: mean (default), cls, max or lasttoken.
            batch_tokens: tokens of one forward pass, padding included; None: what suits the device.

        Raises:
            InputError: when the model cannot be found or loaded, or a length exceeds its positions.
        """
        where = resolve_device(device)
        place = resolve_model(model)
        loaded = load_model(place, where, pooling)
        return cls(
            loaded,
            source=str(model) if str(model).startswith("package:") else place,
            query=_side(loaded, "query", query_prompt, query_max_length),
            document=_side(loaded, "document", document_prompt, document_max_length),
            precision=resolve_precision(precision, where),
            pooling=pooling,
            batch_tokens=batch_tokens,
        )

    @property
    def dim(self) -> int:
        """The number of dimensions of an embedding."""
        return int(self.model.get_embedding_dimension() or 0)

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the vectors, and what is needed to load this encoder again.

        The hash of the weights is kept until the sum of one of them changes, as any training changes it.
        """
        now = [float(tensor.sum()) for tensor in self.model.state_dict().values()]
        if self._weights is None or self._weights[0] != now:
            self._weights = now, weights_sha256(self.model, self.model.tokenizer)
        return {
            "source": self.source,
            "weights_sha256": self._weights[1],
            "modules": [_description(module) for module in self.model],
            "dim": self.dim,
            "similarity": self.model.similarity_fn_name,
            "query_prompt": self.query.prompt,
            "document_prompt": self.document.prompt,
            "query_max_length": self.query.max_length,
            "document_max_length": self.document.max_length,
            "pooling": self.pooling,
            "precision": self.precision,
        }

    def save(self, folder: Path, *, card: str) -> None:
        """Publish a sentence-transformers folder; `folder` must not exist.

        Prompts and lengths become the model's own, so that others encode alike.
        """
        first = self.model[0]
        for name, side in (("query", self.query), ("document", self.document)):
            self.model.prompts[name] = side.prompt
            if hasattr(first, f"{name}_length"):
                setattr(first, f"{name}_length", side.max_length)
        save_model(self.model, folder, card=card)

    def encode_query(self, texts: Sequence[str]) -> Embeddings:
        """Return the (queries, dim) float32 embeddings of `texts`."""
        return self._encode(texts, self.query, "queries")

    def encode_document(self, texts: Sequence[str]) -> Embeddings:
        """Return the (docs, dim) float32 embeddings of `texts`; a document's text is title + " " + text."""
        return self._encode(texts, self.document, "docs")

    def _encode(self, texts: Sequence[str], side: Side, unit: str) -> Embeddings:
        if isinstance(texts, str):
            raise InputError("got one string; wanted a list of texts")
        for position, text in enumerate(texts):
            if not isinstance(text, str) or has_lone_surrogate(text):
                got = "half a surrogate pair" if isinstance(text, str) else type(text).__name__
                raise InputError(f"text {position} of {len(texts)} is {got}; wanted a string of characters")
        blocks = (list(texts[i : i + BLOCK]) for i in range(0, len(texts), BLOCK))
        found = list(self.encode_blocks(blocks, side, total=len(texts), unit=unit))
        return np.concatenate(found) if found else np.empty((0, self.dim), dtype=np.float32)

    def encode_blocks(
        self, blocks: Iterable[Sequence[str]], side: Side, *, total: int | None = None, unit: str = "docs"
    ) -> Iterator[Embeddings]:
        """Yield the embeddings of each block of texts in order, tokenising the next block meanwhile."""
        with (
            ThreadPoolExecutor(1) as pool,
            progress(total=total, unit=unit, label="encoding") as bar,
        ):
            task = "query" if side is self.query else "document"
            source = iter(blocks)
            first = next(source, None)
            ahead = None if first is None else pool.submit(self.tokenize, first, side)
            while ahead is not None:
                tokens = ahead.result()
                following = next(source, None)
                ahead = None if following is None else pool.submit(self.tokenize, following, side)
                result = np.empty((len(tokens), self.dim), dtype=np.float32)
                for rows in token_batches([len(t) for t in tokens], self.batch_tokens):
                    result[rows] = self._infer([tokens[row] for row in rows], task)
                    bar.update(len(rows))
                yield result

    def tokenize(self, texts: Sequence[str], side: Side) -> list[list[int]]:
        """Return the token ids of each text, prompt and special tokens included, cut to the side's length.

        A text without any token (an empty one, for some tokenizers) becomes one padding token.
        """
        prompted = [side.prompt + text for text in texts] if side.prompt else list(texts)
        if self._is_static:
            encodings = self.model.tokenizer.encode_batch(prompted, add_special_tokens=False)
            return [encoding.ids[: side.max_length] for encoding in encodings]
        with self._tokenizing:
            ids = first_tokens(self.model.tokenizer, prompted, side.max_length)
            filler = [self.model.tokenizer.pad_token_id or 0]
        return [row or filler for row in ids]

    def forward(
        self, tokens: Sequence[Sequence[int]], transformer: torch.nn.Module | None = None, task: str | None = None
    ) -> torch.Tensor:
        """Return the (n, dim) float32 embeddings of token lists, in the caller's gradient and autocast mode.

        Everything after the first module runs in float32, whatever precision that module computed in. A model that
        is to be cut to its first dimensions (`truncate_dim`) is, and its unit vectors are made so again. `task` is
        "query" or "document": a model with a route for each side (`Router`) needs to know.
        """
        import torch
        from torch.nn.functional import normalize

        device = self.model.device
        first, *rest = self.model
        features = {name: tensor.to(device) for name, tensor in self._features(tokens).items()}
        features = (transformer or first)(features)
        with torch.autocast(device.type, enabled=False):
            for name in ("token_embeddings", "sentence_embedding"):
                if name in features:
                    features[name] = features[name].float()
            for module in rest:
                if "task" not in getattr(module, "forward_kwargs", ()):
                    features = module(features)
                elif task is not None:
                    features = module(features, task=task)
                else:
                    raise InputError(
                        f"{self.source} has a route for each side (Router); it encodes, but is not trained"
                    )
            embedding: torch.Tensor = features["sentence_embedding"]
            if embedding.shape[1] > self.dim:
                embedding = embedding[:, : self.dim]
                if self.model.similarity_fn_name == "cosine":
                    embedding = normalize(embedding, dim=1)
        return embedding

    def weights_changed(self) -> None:
        """Forget the bf16 copy of the weights and their hash; training calls this before it encodes."""
        self._inference_transformer = self._weights = None

    def _infer(self, tokens: Sequence[Sequence[int]], task: str) -> Embeddings:
        import torch

        with torch.inference_mode():
            found: Embeddings = self.forward(tokens, self._low_precision(), task).cpu().numpy()
        return found

    def _low_precision(self) -> torch.nn.Module | None:
        """Return a bf16 copy of the transformer: casting once beats autocast's cast at every call."""
        import torch

        if self.precision == "fp32" or self._is_static:
            return None
        if self._inference_transformer is None:
            with self._tokenizing:  # the copy holds the tokenizer too
                self._inference_transformer = copy.deepcopy(self.model[0]).to(torch.bfloat16).eval()
        return self._inference_transformer

    def _features(self, tokens: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        import torch

        if self._is_static:
            lengths = [len(ids) for ids in tokens]
            flat = torch.tensor(list(chain.from_iterable(tokens)), dtype=torch.long)
            return {"input_ids": flat, "offsets": torch.tensor([0, *lengths[:-1]]).cumsum(0)}
        padded = self.model.tokenizer.pad({"input_ids": [list(ids) for ids in tokens]}, return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions in batches of similar length, longest first, each at most `batch_tokens` once padded.

    The longest first: memory runs out at once or never. One text longer than the budget is a batch of its own.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    batch: list[int] = []
    for position in order:
        widest = max(1, lengths[batch[0]]) if batch else 1
        if batch and widest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def first_difference(
    known: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """Return (what, known value, value now) of the first thing in which two fingerprints disagree, or None.

    Where a model was loaded from does not matter, nor in which precision; the pooling shows in the modules.
    """
    for name, value in known.items():
        if name not in ("source", "precision", "pooling", *ignored) and now.get(name) != value:
            return name, value, now.get(name)
    return None


def _side(model: SentenceTransformer, name: str, prompt: str | None, max_length: int | None) -> Side:
    """Fill in the model's own prompt and length where none is given.

    Prompts are those of sentence-transformers' encode_query and encode_document, but an empty "document" prompt does
    not hide one that is called "passage" or "corpus".
    """
    if prompt is None:
        names = (name,) if name == "query" else (name, "passage", "corpus")
        prompt = next(filter(None, map(model.prompts.get, names)), "")
    positions = positions_of(model[0])
    if max_length is None:
        own = getattr(model[0], f"{name}_length", None) or model.max_seq_length
        limits = [limit for limit in (own, positions) if limit is not None]
        # A tokenizer without a limit says infinity, or a number with thirty digits.
        longest = min(limits, default=float("inf"))
        return Side(prompt, int(longest) if longest < 1e9 else None)
    if max_length < 3:
        raise InputError(f"{name}_max_length must be at least 3 (two special tokens and a word), got {max_length}")
    if positions is not None and max_length > positions:
        raise InputError(f"{name}_max_length {max_length} exceeds the model's {positions} positions; lower it")
    return Side(prompt, max_length)


def positions_of(first: Any) -> int | None:
    """Return how many tokens a model has positions for, or None where there is no end to them.

    In RoBERTa and its kin the first positions stand for padding, so the longest text is shorter than the table.
    """
    for module in first.modules():
        table: Any = getattr(module, "position_embeddings", None)
        if getattr(table, "padding_idx", None) is not None:
            return int(table.num_embeddings) - int(table.padding_idx) - 1
    return getattr(getattr(first, "config", None), "max_position_embeddings", None)


def _description(module: Any) -> str:
    """Describe what of a module is neither a weight nor a length, in words that outlive versions of the library."""
    config = getattr(module, "config", None)
    found = {
        "type": getattr(config, "model_type", None),
        "heads": getattr(config, "num_attention_heads", None),
        "pooling": getattr(module, "pooling_mode", None),
        "activation": type(module.activation_function).__name__ if hasattr(module, "activation_function") else None,
    }
    return " ".join([type(module).__name__, *(f"{name}={value}" for name, value in found.items() if value is not None)])
