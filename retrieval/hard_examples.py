"""What makes a dual encoder's run harder than random batches: proxies, clusters, refreshed negatives, bad pairs.

All of it happens between steps, at pauses: where an epoch begins that is drawn by proxies, and where negatives are due
to be mined again. What it knows is kept in checkpoints: a run that is killed between two pauses goes on exactly.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.bad_pairs import LossMemory, flagged_rows, write_flagged
from retrieval.batch_order import ClusterOrder, ProxyOrder, RandomOrder, batch_likeness, by_decile
from retrieval.batches import Batch, Batcher, micro_batches
from retrieval.errors import InputError
from retrieval.hardness_schedule import parse_hardness
from retrieval.refreshed_negatives import RefreshedNegatives
from retrieval.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from rankers.engine import RowTargets, Watch
    from retrieval.corpus import Corpus
    from retrieval.encoder import Encoder
    from retrieval.proxies import ProxyBank, ProxyBranch

logger = logging.getLogger(__name__)

_CLUSTER_BATCHES = 4  # batches of rows in a cluster of mean size


class HardExamples:
    """The hard batches and hard negatives of one run, as its settings ask for them.

    Args:
        config: the settings.
        encoder: the model.
        batcher: whose order and negatives are set.
        epochs: of the run.

    Attributes:
        branch: of the global proxies, to be trained; None unless batching=proxy.

    """

    def __init__(self, config: TrainConfig, encoder: Encoder, batcher: Batcher, *, epochs: int) -> None:
        self._config, self._encoder, self._batcher = config, encoder, batcher
        self._hardness = partial(parse_hardness(config.hardness).of_epoch, epochs=epochs)
        self.branch: ProxyBranch | None = None
        self._bank: ProxyBank | None = None
        self._groups = np.empty(0, dtype=np.int64)
        self._clusters: NDArray[np.int64] | None = None
        self._refreshed: RefreshedNegatives | None = None
        self._memory = LossMemory(len(batcher.rows), epochs) if config.find_bad_pairs else None
        self._news: dict[str, float] = {}
        if config.batching == "proxy":
            self._make_proxies()
        if config.refresh_every:
            if batcher.rule.teacher:
                message = (
                    f"refresh_every mines negatives that no teacher has scored, and {config.loss} reads such scores"
                )
                raise InputError(f"{message}; take another loss, or mine, score and label rows beforehand")
            self._refreshed = RefreshedNegatives(encoder, batcher, config.refresh_rules(), config.refresh_depth)
        if config.batching != "random" and epochs == 1:
            told = {"proxy": "the first epoch is random, so nothing is drawn by proxies"}
            if not parse_hardness(config.hardness).is_constant:
                told.setdefault("cluster", f"hardness {config.hardness} stays where it begins")
            if config.batching in told:
                logger.warning("the run has one epoch: %s; raise num_train_epochs", told[config.batching])

    def _make_proxies(self) -> None:
        from retrieval.proxies import ProxyBank, ProxyBranch

        config = self._config
        self._groups = self._batcher.groups()
        self.branch = ProxyBranch(self._encoder.dim, config.proxy_dim, config.seed)
        self._bank = ProxyBank(int(self._groups.max()) + 1, config.proxy_dim, Path(config.out))
        size = config.per_device_train_batch_size
        self._batcher.order = ProxyOrder(self._groups, self._bank.proxies, size, self._hardness, config.seed)
        logger.info("%d rows in %d groups", len(self._groups), self._bank.groups)

    def _cluster(self, clusters: NDArray[np.int64]) -> None:
        size = self._config.per_device_train_batch_size
        self._clusters = clusters
        self._batcher.order = ClusterOrder(clusters, size, self._hardness, self._config.seed)

    def _clusters_of_rows(self) -> NDArray[np.int64]:
        """Return the cluster of each row: k-means over the mean of its query's and first positive's embeddings."""
        from indexes.clusters import kmeans

        rows, corpus = self._batcher.rows, self._batcher.corpus
        batches = len(rows) / self._config.per_device_train_batch_size
        count = min(len(rows), self._config.clusters or max(1, round(batches / _CLUSTER_BATCHES)))
        if self._config.clusters is not None and self._config.clusters > len(rows):
            logger.warning("clusters=%d is more than the %d rows", self._config.clusters, len(rows))
        queries = self._encoder.encode_query([row.query for row in rows])
        firsts = [self._batcher.eligible(row)[0] for row in rows]
        texts = [corpus.text(corpus.row(str(key))) if text is None else text for key, text in firsts]
        distinct = list(dict.fromkeys(texts))
        places = {text: place for place, text in enumerate(distinct)}
        joined = queries + self._encoder.encode_document(distinct)[[places[text] for text in texts]]
        joined /= np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-12)
        _, assigned = kmeans(joined, count, self._config.seed)
        sizes = np.bincount(assigned)
        logger.info("%d clusters of %d to %d rows", count, sizes.min(), sizes.max())
        return assigned

    # --- pauses ---------------------------------------------------------------------------------------------------

    def pauses(self, first: int, total: int, in_epoch: int) -> list[int]:
        """Return the steps before which something is to be done, `first` always among them, ascending."""
        found = {first}
        if self._bank is not None:
            found |= set(range(math.ceil(first / in_epoch) * in_epoch, total, in_epoch))
        if every := self._config.refresh_every:
            found |= set(range(math.ceil(first / every) * every, total, every))
        return sorted(step for step in found if step < total)

    def before(self, step: int, total: int, in_epoch: int, accumulation: int) -> None:
        """Do what is due before a step: draw the epoch by proxies, mine negatives again. The model is in use.

        What needs the start model is done before the first step, unless a checkpoint has brought it.
        """
        started = time.perf_counter()
        self._begin()
        epoch, place = divmod(step, in_epoch)
        if self._bank is not None and place == 0 and epoch > 0:
            self._bank.close_epoch()
            self._tell_of(epoch)
        every = self._config.refresh_every
        if self._refreshed is not None and step > 0 and step % every == 0:
            self._refreshed.refresh(self._due(step, min(step + every, total), in_epoch, accumulation), step)
        if self._bank is not None or self._refreshed is not None or self._clusters is not None:
            self._news["pause_seconds"] = round(time.perf_counter() - started, 3)

    def _begin(self) -> None:
        if self._config.batching == "cluster" and self._clusters is None:
            self._cluster(self._clusters_of_rows())
        if self._refreshed is not None and not self._refreshed.has_begun:
            self._refreshed.begin()

    def _due(self, first: int, stop: int, in_epoch: int, accumulation: int) -> list[int]:
        """Return the rows of these steps; all rows where an epoch among them is not drawn yet."""
        epochs = range(first // in_epoch, math.ceil(stop / in_epoch))
        if self._bank is not None and len(epochs) > 1:
            return list(range(len(self._batcher.rows)))
        due: set[int] = set()
        for epoch in epochs:
            for number, batches in enumerate(micro_batches(self._batcher, epoch, accumulation), epoch * in_epoch):
                if first <= number < stop:
                    due.update(*(batch.tolist() for batch in batches))
        return sorted(due)

    def _tell_of(self, epoch: int) -> None:
        """Say how alike the rows of the epoch's batches are, in the order of drawing, and those of random ones."""
        assert self._bank is not None
        order = self._batcher.order
        assert isinstance(order, ProxyOrder)
        size = self._config.per_device_train_batch_size
        random = RandomOrder(len(self._groups), size, self._config.seed).batches(epoch)
        found, at_random = (
            one[np.isfinite(one)]
            for one in (
                batch_likeness(batches, self._groups, self._bank.proxies()) for batches in (order.drawn(epoch), random)
            )
        )
        if not len(found) or not len(at_random):  # batches of one row
            return
        tenths, chance = by_decile(found), float(at_random.mean())
        self._news |= {f"likeness_{i}": value for i, value in enumerate(tenths, 1)} | {"likeness_random": chance}
        loose = int((found <= chance).sum())
        logger.info(
            "epoch %d: %d groups; likeness of a batch by tenths of the drawing %s; of random batches %.3f%s",
            epoch,
            self._bank.seen,
            " ".join(f"{value:.3f}" for value in tenths),
            chance,
            f"; {loose} of {len(found)} batches are no more alike than random ones" if loose else "",
        )

    # --- steps ----------------------------------------------------------------------------------------------------

    def watches(self, batch: Batch) -> list[Watch]:
        """Return what must see the step of a batch."""
        found: list[Watch] = []
        if self._bank is not None:
            found.append(self._bank.watch(batch, self._groups, self._encoder.dim))
        if self._memory is not None:
            found.append(_PairLosses(self._memory, batch))
        return found

    def news(self) -> dict[str, float]:
        """Return what the log has not been told yet."""
        found, self._news = self._news, {}
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint must keep."""
        found: dict[str, NDArray[Any]] = {}
        if self._bank is not None:
            found |= self._bank.arrays()
        if self._clusters is not None:
            found["clusters"] = self._clusters
        if self._refreshed is not None and self._refreshed.has_begun:
            found |= self._refreshed.arrays()
        if self._memory is not None:
            found |= {f"losses.{name}": array for name, array in self._memory.state().items()}
        return found

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what a checkpoint kept."""
        if self._bank is not None:
            self._bank.restore(arrays)
        if "clusters" in arrays:
            self._cluster(arrays["clusters"])
        if self._refreshed is not None and "negative_rows" in arrays:
            self._refreshed.restore(arrays)
        if self._memory is not None:
            state = {name: array for name, array in arrays.items() if name.startswith("losses.")}
            self._memory.load({name.removeprefix("losses."): array for name, array in state.items()})

    def report(self, folder: Path, corpus: Corpus) -> None:
        """Write bad_pairs.tsv, when it is asked for."""
        if self._memory is None:
            return
        flagged = flagged_rows(self._memory, self._batcher.rows, corpus)
        write_flagged(folder / "bad_pairs.tsv", flagged)
        logger.info("%s: %d of %d rows stand out", folder / "bad_pairs.tsv", len(flagged), len(self._batcher.rows))


class Watches:
    """Several that watch one step."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches

    def embedded(self, queries: Tensor, documents: Tensor) -> None:
        """Tell each."""
        for watch in self._watches:
            watch.embedded(queries, documents)

    def scored(self, start: int, scores: Tensor, targets: RowTargets) -> None:
        """Tell each."""
        for watch in self._watches:
            watch.scored(start, scores, targets)


class _PairLosses:
    """Remembers what each row's positives cost: -log softmax of their scores over the row, at a fixed temperature.

    It is the same whatever loss is trained, and needs no more than the scores.
    """

    TEMPERATURE = 0.05

    def __init__(self, memory: LossMemory, batch: Batch) -> None:
        self._memory, self._batch = memory, batch

    def embedded(self, queries: Tensor, documents: Tensor) -> None:
        """Take nothing."""

    def scored(self, start: int, scores: Tensor, targets: RowTargets) -> None:
        """Take a block of rows."""
        import torch

        batch = self._batch
        queries = batch.row_query[start : start + len(scores)]
        logits = (scores.double() / self.TEMPERATURE).masked_fill(~targets.where, -torch.inf)
        costs = (torch.logsumexp(logits, dim=1, keepdim=True) - logits).cpu().numpy()
        relevant = targets.labels.cpu().numpy() > 0 if batch.targets.is_valid else None
        numbers, losses = [], []
        for row, query in enumerate(queries.tolist()):
            own = [c for c in batch.positive_columns[query] if relevant is None or relevant[row, c]]
            if len(own) and np.isfinite(cost := costs[row, own].mean()):
                numbers.append(int(batch.row_numbers[query]))
                losses.append(float(cost))
        self._memory.add(numbers, losses, batch.epoch)
