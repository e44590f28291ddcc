"""Global proxies: one small vector of every group, made by a branch that is trained with the model, kept in a bank.

A group is a document with its queries (or a label with its texts): the rows that share a first positive. While an epoch
runs, the bank adds up the proxies of a group's queries and documents, which the step has computed anyway; at its end
their mean directions say which groups are near one another, and `retrieval.batch_order` draws the next epoch by that.
Nothing is encoded again.

    z = W x / |W x|          of an embedding x; W: (proxy_dim, dim), trained
    loss = L(x) + weight * L(z)                                        L: the run's loss, over the same batch
    c_k = normalised sum of the z of group k over the epoch, detached

Import this module only where torch is installed.

Source: Ali-bey et al. 2023, "Global Proxy-based Hard Mining for Visual Place Recognition" (arXiv:2302.14217); in place
of its places, groups of a text collection.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.batches import Batch
from retrieval.steps import Embedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from rankers.engine import RowTargets

_IN_MEMORY = 1 << 24  # numbers of a bank up to which it is held in memory; above, in files
_PART = 1 << 16  # groups whose proxies are made at once; as bytes, whole pages of memory


class ProxyBranch(nn.Module):
    """The linear map from embeddings to proxies; its rows start orthonormal, so that angles are kept as they can be."""

    def __init__(self, dim: int, proxy_dim: int, seed: int) -> None:
        super().__init__()
        # skip_init: no number is drawn that the run would have drawn without proxies
        self.linear: nn.Linear = nn.utils.skip_init(nn.Linear, dim, proxy_dim, bias=False)  # type: ignore[no-untyped-call]
        nn.init.orthogonal_(self.linear.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the unit vectors, (n, proxy_dim) float32, of (n, dim) embeddings."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return nn.functional.normalize(self.linear(embeddings.float()), dim=1)


class WithProxies:
    """An encoder whose embeddings carry their proxies in further columns."""

    def __init__(self, encoder: Embedder, branch: ProxyBranch) -> None:
        self._encoder, self._branch = encoder, branch

    @property
    def model(self) -> SentenceTransformer:
        """Whose device the texts go to."""
        return self._encoder.model

    @property
    def precision(self) -> str:
        """Of the transformer."""
        return self._encoder.precision

    @property
    def batch_tokens(self) -> int:
        """Tokens of one forward pass."""
        return self._encoder.batch_tokens

    def forward(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return (n, dim + proxy_dim) embeddings and proxies."""
        embeddings = self._encoder.forward(tokens)
        return torch.cat([embeddings, self._branch(embeddings)], dim=1)


class ProxyBank:
    """What an epoch has added up of each group, and what the epoch before came to.

    Attributes:
        groups: how many there are.
        seen: of how many groups the last closed epoch had a proxy.

    Args:
        groups: how many there are.
        dim: of a proxy.
        folder: where the files of a large bank lie, without a name, so that nothing is left of them when the process
            ends. It is made when the bank is first used.

    """

    def __init__(self, groups: int, dim: int, folder: Path | None = None) -> None:
        self.groups, self.dim, self.seen = groups, dim, 0
        self._folder = folder

    @cached_property
    def _sums(self) -> NDArray[np.float32]:
        _leave_memory(self._proxies)  # nobody reads them while an epoch is added up, but for a checkpoint
        return _zeros((self.groups, self.dim), np.float32, self._folder)

    @cached_property
    def _proxies(self) -> NDArray[np.float16]:
        return _zeros((self.groups, self.dim), np.float16, self._folder)

    def add(self, groups: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add one unit vector to each of these groups; one that stands there twice gets both."""
        np.add.at(self._sums, groups, vectors)

    def close_epoch(self) -> None:
        """Make proxies of the sums, and begin again at zero: epochs are never mixed."""
        self.seen = 0
        for start in range(0, self.groups, _PART):
            part = self._sums[start : start + _PART]
            norms = np.linalg.norm(part, axis=1, keepdims=True)
            self.seen += int(np.count_nonzero(norms))
            self._proxies[start : start + _PART] = part / np.where(norms > 0, norms, 1)
            _leave_memory(self._sums, start)
        del self._sums  # made anew at zero when it is next used, so that its memory is free while the epoch is drawn

    def proxies(self) -> NDArray[np.float16]:
        """Return the (groups, dim) unit vectors of the last closed epoch; zero for a group that it did not meet."""
        return self._proxies

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint must keep."""
        return {"proxy_sums": self._sums, "proxies": self._proxies}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what a checkpoint kept."""
        self._sums[:], self._proxies[:] = arrays["proxy_sums"], arrays["proxies"]

    def watch(self, batch: Batch, groups: NDArray[np.int64], dim: int) -> BankWatch:
        """Return what adds the proxies of a batch; `groups` are of all rows, `dim` is where the proxies begin."""
        return BankWatch(self, batch, groups, dim)


class BankWatch:
    """Adds the proxies of a batch's queries, and of the positives that they drew, to their groups."""

    def __init__(self, bank: ProxyBank, batch: Batch, groups: NDArray[np.int64], dim: int) -> None:
        self._bank, self._batch, self._groups, self._dim = bank, batch, groups, dim

    def embedded(self, queries: Tensor, documents: Tensor) -> None:
        """Take embeddings with proxies."""
        own = self._groups[self._batch.row_numbers]
        self._bank.add(own, queries[:, self._dim :].float().cpu().numpy())
        columns = [column for columns in self._batch.positive_columns for column in columns]
        counts = [len(columns) for columns in self._batch.positive_columns]
        self._bank.add(np.repeat(own, counts), documents[:, self._dim :].float().cpu().numpy()[columns])

    def scored(self, start: int, scores: Tensor, targets: RowTargets) -> None:
        """Take nothing."""


def _zeros(shape: tuple[int, int], dtype: type[np.floating], folder: Path | None) -> NDArray[Any]:
    if folder is None or shape[0] * shape[1] <= _IN_MEMORY:
        return np.zeros(shape, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def _leave_memory(array: NDArray[Any], start: int | None = None) -> None:
    """Let a mapped array, or `_PART` rows of it, lie in its file alone until it is read again."""
    pages = array.base
    if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        first, last = (0, len(array)) if start is None else (start, min(start + _PART, len(array)))
        row = array.strides[0]
        pages.madvise(mmap.MADV_DONTNEED, first * row, (last - first) * row)
