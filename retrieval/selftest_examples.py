"""What a self-test runs on when the user gives no model and no data: a small random encoder, and random batches.

Everything is made from a seed: no file, no tokenizer, no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankers.losses import LossSum, RankingLoss
from retrieval.batches import Batch
from retrieval.cells import CellTargets
from retrieval.encoder import Encoder, Side
from retrieval.steps import TokenizedBatch

QUERIES, DOCUMENTS = 9, 31  # no multiples of 2: two processes hold different numbers of them
HIGHEST_GRADE = 4
_DIM, _WORDS, _LONGEST = 32, 97, 12


def random_encoder(device: torch.device, seed: int = 0) -> Encoder:
    """Return a BERT of 2 layers and 32 dimensions: random weights, dropout of 0.1, mean pooling, unit vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = RandomBert()
    model = SentenceTransformer(modules=[first, Pooling(_DIM, pooling_mode="mean"), Normalize()], device=str(device))
    return Encoder(model, source="a random encoder", query=Side("", None), document=Side("", None))


class RandomBert(nn.Module):
    """The first module of a sentence-transformers model: token ids → embeddings of tokens."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            vocab_size=_WORDS,
            hidden_size=_DIM,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * _DIM,
            max_position_embeddings=_LONGEST,
            initializer_range=0.1,  # with BERT's 0.02 a model of this size makes all texts one vector
        )
        self.auto_model = BertModel(config, add_pooling_layer=False)
        self.tokenizer = Padding()

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add "token_embeddings", (texts, tokens, dim)."""
        found = self.auto_model(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        return {**features, "token_embeddings": found.last_hidden_state}


class Padding:
    """All that an encoder asks of a tokenizer when texts are token ids already."""

    pad_token_id = 0

    def pad(self, encoded: Mapping[str, Sequence[list[int]]], **_: Any) -> dict[str, Tensor]:
        """Return ids and mask, (texts, tokens of the longest)."""
        ids = [torch.tensor(text) for text in encoded["input_ids"]]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(text) for text in ids])
        return {"input_ids": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()}


def random_batch(loss: RankingLoss | LossSum, seed: int = 0) -> TokenizedBatch:
    """Return 9 queries and 31 documents of random tokens, with labels of the kind that the loss takes.

    A tenth of the entries is masked. A loss that wants one relevant document in a row has a row for each (query,
    relevant document); a teacher scores half of the entries, and the others are masked.
    """
    random = np.random.default_rng(seed)
    grades = np.where(random.random((QUERIES, DOCUMENTS)) < 0.1, random.integers(1, HIGHEST_GRADE + 1), 0)
    grades[np.arange(QUERIES), random.permutation(DOCUMENTS)[:QUERIES]] = HIGHEST_GRADE  # one at least for each query
    where = (random.random(grades.shape) < 0.9) | (grades > 0)
    labels: NDArray[np.float32] = grades.astype(np.float32)
    row_query = np.arange(QUERIES)
    if loss.kind == "probability":
        labels /= HIGHEST_GRADE
    elif loss.kind == "teacher":
        labels = random.normal(size=grades.shape).astype(np.float32)
        where = random.random(grades.shape) < 0.5
    if not all(term.entry.several_positives for term in loss.terms):
        row_query, column = np.nonzero(grades)
        labels = np.zeros((len(row_query), DOCUMENTS), dtype=np.float32)
        labels[np.arange(len(column)), column] = grades[row_query, column]
        where = where[row_query] & (grades[row_query] == 0)
        where[np.arange(len(column)), column] = True
    batch = Batch(
        query_ids=[f"q{i}" for i in range(QUERIES)],
        queries=[f"query {i}" for i in range(QUERIES)],
        documents=[f"document {i}" for i in range(DOCUMENTS)],
        query_numbers=np.arange(QUERIES),
        row_query=row_query,
        targets=CellTargets.of(labels, where, row_query.tolist()),
    )
    return TokenizedBatch(batch, _texts(random, QUERIES), _texts(random, DOCUMENTS))


def _texts(random: np.random.Generator, count: int) -> list[list[int]]:
    """Return texts as token ids, of different lengths; 0 is padding."""
    return [random.integers(1, _WORDS, size=length).tolist() for length in random.integers(3, _LONGEST + 1, size=count)]
