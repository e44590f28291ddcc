"""Small maps trained over finished embeddings, for measurements that need many trainings of a second each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexes import FaissIndex
from retrieval.bad_pairs import LossMemory
from retrieval.collection import Collection
from retrieval.embedding_health import collapse_warning, effective_rank, mean_cosine
from retrieval.evaluation import evaluate

TEMPERATURE = 0.05


def batches(rows: int, size: int, steps: int, seed: int) -> list[NDArray[np.int64]]:
    """Return `steps` whole batches of shuffled epochs."""
    random = np.random.default_rng(seed)
    found: list[NDArray[np.int64]] = []
    while len(found) < steps:
        order = random.permutation(rows)
        found += [order[start : start + size] for start in range(0, rows - size + 1, size)] or [order]
    return found[:steps]


def collapse(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    right: NDArray[np.int64],
    steps: int,
    dim: int,
    batch: int,
    *,
    shuffled: bool,
) -> dict[str, Any]:
    """Train a network from scratch with the hardest negative and say what became of it."""
    import torch
    from torch.nn.functional import normalize

    from rankers.losses import build

    torch.manual_seed(0)
    positive = np.random.default_rng(0).permutation(right) if shuffled else right
    hidden = torch.nn.Linear(queries.shape[1], 256)
    net = torch.nn.Sequential(hidden, torch.nn.ReLU(), torch.nn.Linear(256, dim))
    optimizer, loss, margin = torch.optim.AdamW(net.parameters(), lr=1e-2), build("triplet"), 0.2
    found: dict[str, Any] = {}
    for numbers in batches(len(queries), batch, steps, seed=0):
        query = normalize(net(torch.from_numpy(queries[numbers])), dim=-1)
        document = normalize(net(torch.from_numpy(documents[positive[numbers]])), dim=-1)
        scores = query @ document.T
        value = loss(scores, torch.eye(len(numbers)), where=others(positive[numbers]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        vectors = document.detach().numpy()
        found = {"loss": float(value.detach()), "cosine": mean_cosine(vectors), "rank": effective_rank(vectors)}
        found["spread"] = float(scores.detach().std(-1).mean())
    warning = collapse_warning(
        found["loss"],
        margin,
        document_cosine=found["cosine"],
        effective_rank=found["rank"],
        score_std=found["spread"],
        documents=batch,
    )
    return found | {"dim": dim, "batch": batch, "shuffled": shuffled, "warned": warning is not None}


def others(positive: NDArray[np.int64]) -> Any:
    """Return the mask of a batch: another row's equal document is no negative."""
    import torch

    same = positive[:, None] == positive[None, :]
    return torch.from_numpy(~same | np.eye(len(positive), dtype=bool))


def train_map(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    positive: NDArray[np.int64],
    plan_of_batches: Sequence[NDArray[np.int64]],
    weights: NDArray[np.float64] | None = None,
    memory: LossMemory | None = None,
) -> NDArray[np.float32]:
    """Train one linear map of both sides with InfoNCE and return it; losses go to the memory."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    weight = torch.eye(queries.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    per_epoch = -(-len(queries) // len(plan_of_batches[0]))
    for step, numbers in enumerate(plan_of_batches):
        query = normalize(torch.from_numpy(queries[numbers]) @ weight.T, dim=-1)
        document = normalize(torch.from_numpy(documents[positive[numbers]]) @ weight.T, dim=-1)
        logits = (query @ document.T / TEMPERATURE).masked_fill(~others(positive[numbers]), -torch.inf)
        losses = cross_entropy(logits, torch.arange(len(numbers)), reduction="none")
        if memory is not None:
            memory.add(numbers, losses.detach().numpy(), min(step // per_epoch, memory.epochs - 1))
        if weights is not None:
            losses = losses * torch.from_numpy(weights[numbers]).float()
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return weight.detach().numpy()


def row_losses(
    queries: NDArray[np.float32], documents: NDArray[np.float32], positive: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return InfoNCE of each row against 1,000 random documents."""
    pool = np.random.default_rng(0).choice(len(documents), min(1000, len(documents)), replace=False)
    own = (queries * documents[positive]).sum(axis=1, keepdims=True)
    scores = np.where(pool[None] == positive[:, None], -np.inf, queries @ documents[pool].T)
    logits = np.hstack([own, scores]).astype(np.float64) / TEMPERATURE
    highest = logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = np.log(np.exp(logits - highest).sum(axis=1)) + (highest - logits[:, :1])[:, 0]
    return found


def ndcg(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    ids: Sequence[str],
    qrels: dict[str, dict[str, int]],
    collection: Collection,
) -> float:
    """Return nDCG@10 of an exact search."""
    index = FaissIndex(documents.shape[1])
    index.add(documents / np.linalg.norm(documents, axis=1, keepdims=True))
    found = index.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), 10)
    names = collection.corpus.ids
    run = {
        q: {names[row]: float(score) for row, score in zip(rows, scores, strict=True) if row >= 0}
        for q, rows, scores in zip(ids, found.rows.tolist(), found.scores.tolist(), strict=True)
    }
    return float(evaluate(qrels, run, ["nDCG@10"])["nDCG@10"])
