"""FAISS behind the small Protocol: any factory string, checked input, one order for ties, one file."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from indexes import storage
from indexes.manifest import Verify
from indexes.neighbors import Names, Neighbors, Vectors, check_k, check_vectors, topk

__all__ = ["FILE", "FaissIndex", "check_vectors"]

FILE = "index.faiss"  # plain faiss.read_index opens it
KIND = "index"  # of a folder whose manifest has our settings under "index"

# n queries of d dimensions go through BLAS, in a flat index and in the coarse quantizer of an IVF, if n * d
# reaches a threshold; faiss 1.15 sets it to 128,000. Measured on 50,000 x 384, ip, k = 100, 2 cores with AVX-512:
#
#     queries at once             1      2      4      10     64     500
#     ms per query, no BLAS       4.28   1.28   1.57   1.48   1.37   1.35
#     ms per query, BLAS          4.27   2.43   1.33   0.79   0.22   0.16
#
# They cross at 3 or 4 queries (2 to 6 with l2 and with 128, 768 and 1,024 dimensions): 4 x 384 is the constant.
_BLAS_THRESHOLD = 1536

_MARGIN = 32  # fetched beyond k, so that ties at k are seen; more is fetched only where these all tie
_LARGEST_ANSWER = 1 << 23  # results asked of faiss at once while ties are resolved (48 bytes each, with our sorting)
_ADD_BLOCK = 1 << 16  # vectors per call of faiss, so that Ctrl-C is heard
_HEADER = struct.Struct("<4siqqqBi")  # of every kind: type, dim, ntotal, two dummies, is_trained, metric
_METRICS = {"ip": 0, "l2": 1}  # faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2


@cache
def _faiss() -> Any:
    """Import faiss on first use, and set what is global in it."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = _BLAS_THRESHOLD
    return faiss


class FaissIndex:
    """Vectors in a FAISS index; rows are numbered in the order of adding.

    Scores are inner products ("ip") or minus squared Euclidean distances ("l2"), as exact as the factory's
    codes. Answers come best first, ties in the lower row first: of equal scores at rank k, those with the
    lowest rows are kept, whatever order faiss found them in. To see all of them the search fetches more than
    k, four times as many while every fetched score beyond k ties with the k-th, up to all vectors; an index
    with coarse scores (LSH, PQ of few bits) over many vectors therefore searches slowly at large k. An
    approximate index can only order what it found.

    The same queries in the same batch give the same bytes; alone or in another batch, scores differ in the
    last bits, because FAISS sums in another order.

    Args:
        dim: components per vector.
        factory: a FAISS factory string, such as "Flat", "IVF1024,SQ8" or "HNSW32". IDMap is refused: rows are
            the ids.
        metric: "ip" or "l2".
        search_parameters: settings of searching by FAISS's names, such as {"nprobe": 16} or {"efSearch": 64}.
        threads: used by this index's calls; None leaves it to OpenMP. Graphs are reproducible only with 1.

    Raises:
        ValueError: FAISS does not understand the factory string or a search parameter.
    """

    def __init__(
        self,
        dim: int,
        factory: str = "Flat",
        metric: str = "ip",
        *,
        search_parameters: Mapping[str, float] | None = None,
        threads: int | None = None,
    ) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
            raise ValueError(f"dim must be a whole number >= 1, got {dim!r}")
        if metric not in _METRICS:
            raise ValueError(f"metric must be 'ip' or 'l2', got {metric!r}; for cosine, normalise and use 'ip'")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be >= 1, got {threads}")
        if "IDMap" in factory:
            raise ValueError(f"factory {factory!r}: rows are the ids here; leave IDMap out")
        self.dim, self.factory, self.metric, self.threads = int(dim), factory, metric, threads
        with _explaining(f"factory {factory!r} with {dim} dimensions and metric {metric!r}"):
            self._index = _faiss().index_factory(self.dim, factory, _METRICS[metric])
        self.search_parameters: dict[str, float] = {}
        self.set_search_parameters(search_parameters or {})

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._index.ntotal)

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added; "Flat" and "HNSW32" are trained from the start."""
        return bool(self._index.is_trained)

    def set_search_parameters(self, parameters: Mapping[str, float]) -> None:
        """Change settings of searching; they are saved with the index.

        Raises:
            ValueError: the value is no positive number, or this kind of index has no such setting.
        """
        for name, value in parameters.items():
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not (whole or (isinstance(value, float) and name.startswith("k_factor"))) or not value > 0:
                raise ValueError(f"search parameter {name!r} must be a positive whole number, got {value!r}")
            with _explaining(f"search parameter {name!r} for factory {self.factory!r}"):
                _faiss().ParameterSpace().set_index_parameter(self._index, name, float(value))
            self.search_parameters[name] = int(value) if whole else float(value)

    def train(self, vectors: Vectors, names: Names | None = None) -> None:
        """Learn centroids and codes from a sample (FAISS asks for 39 vectors per centroid or more).

        Raises:
            ValueError: at a bad vector (`check_vectors`), or fewer vectors than centroids; both numbers are
                named.
        """
        vectors = check_vectors(vectors, self.dim, names)
        if self.is_trained:
            return
        with self._threads(), _explaining(f"training {self.factory!r} on {len(vectors)} vectors"):
            self._index.train(vectors)

    def add(self, vectors: Vectors, names: Names | None = None) -> None:
        """Append (n, dim) float32 vectors; a bad one leaves the index as it was. `names` are for errors.

        Raises:
            ValueError: at a bad vector (`check_vectors`), or before training.
        """
        vectors = check_vectors(vectors, self.dim, names)
        if len(vectors) and not self.is_trained:
            raise ValueError(f"factory {self.factory!r} must be trained first; call train or train_and_add")
        with self._threads(), _explaining(f"adding {len(vectors)} vectors to {self.factory!r}"):
            for start in range(0, len(vectors), _ADD_BLOCK):
                self._index.add(vectors[start : start + _ADD_BLOCK])

    def train_and_add(self, vectors: Vectors, names: Names | None = None) -> None:
        """Train on all of `vectors` if the index needs it, and add them; none leave it empty."""
        if len(vectors):
            self.train(vectors, names)
        self.add(vectors, names)

    def search(self, queries: Vectors, k: int, *, ties: bool = False) -> Neighbors:
        """Return the best k rows of every query, best first, ties to the lower row.

        Args:
            queries: (queries, dim) float32, checked as vectors are.
            k: >= 1; more than there are vectors is allowed.
            ties: also return every further vector whose score equals the k-th, which makes the result wider
                than k where there are any.

        Returns:
            (queries, k) or wider; row -1 and score -inf where fewer were found.

        Raises:
            ValueError: at k < 1, a query with NaN, or queries of another dimension; both numbers are named.
        """
        check_k(k)
        queries = check_vectors(queries, self.dim, what="query")
        parts: list[tuple[Any, Neighbors]] = []
        pending, fetch = np.arange(len(queries)), min(k + _MARGIN, len(self))
        while fetch and len(pending):
            unresolved = []
            size = max(1, _LARGEST_ANSWER // fetch)
            for batch in (pending[start : start + size] for start in range(0, len(pending), size)):
                found = self._ask(queries[batch], fetch)
                # The last one fetched ties with the k-th, and there are vectors that were not fetched.
                open_end = (found.scores[:, -1] == found.scores[:, min(k, fetch) - 1]) & (found.rows[:, -1] >= 0)
                open_end &= fetch < len(self)
                unresolved.append(batch[open_end])
                parts.append((batch[~open_end], _cut(found, ~open_end, k, ties=ties)))
            pending, fetch = np.concatenate(unresolved), min(4 * fetch, len(self))
        width = max([k, *(part.rows.shape[1] for _, part in parts)])
        rows = np.full((len(queries), width), -1, dtype=np.int64)
        scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
        for batch, part in parts:
            rows[batch, : part.rows.shape[1]] = part.rows
            scores[batch, : part.rows.shape[1]] = part.scores
        return Neighbors(rows, scores)

    def _ask(self, queries: Vectors, fetch: int) -> Neighbors:
        """Return what FAISS finds, (queries, fetch), in our order and with our padding."""
        with self._threads(), _explaining(f"searching {self.factory!r}"):
            scores, rows = self._index.search(queries, fetch)
        if self.metric == "l2":
            scores = 0 - scores  # not -scores: a distance of 0 would become -0.0
        scores[rows < 0] = -np.inf  # faiss pads with the largest float there is, which looks like a score
        by_row = np.argsort(rows, axis=1, kind="stable")  # topk gives ties to the lower column: make that the lower row
        rows = np.take_along_axis(rows, by_row, axis=1)
        best = topk(np.take_along_axis(scores, by_row, axis=1), fetch)
        rows = np.where(best.rows >= 0, np.take_along_axis(rows, np.maximum(best.rows, 0), axis=1), -1)
        return Neighbors(rows, best.scores)

    def write(self, directory: Path) -> dict[str, Any]:
        """Write `index.faiss` into a folder that is being published, and return what `read` must be given.

        For folders that hold more than an index: put the result into their manifest under "index".
        """
        faiss = _faiss()
        with storage.writing(directory / FILE) as file:
            # Not write_index(path), which returns normally and leaves 0 bytes when the disk is full.
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))
        return {
            "engine": "faiss",
            "engine_version": faiss.__version__,
            "factory": self.factory,
            "metric": self.metric,
            "dim": self.dim,
            "rows": len(self),
            "search_parameters": dict(self.search_parameters),
        }

    @classmethod
    def read(cls, directory: Path, settings: Any, *, threads: int | None = None) -> Self:
        """Read what `write` wrote; the caller has compared the file with its hash (`storage.open_folder`).

        Raises:
            StorageError: the file and `settings` disagree (both values named), or FAISS cannot read the file.
        """
        path = directory / FILE
        if not isinstance(settings, Mapping) or settings.get("engine") != "faiss":
            got = settings.get("engine") if isinstance(settings, Mapping) else settings
            raise storage.StorageError(f"{directory}: the manifest's index has engine {got!r}, wanted 'faiss'")
        try:
            dim, rows, metric = int(settings["dim"]), int(settings["rows"]), str(settings["metric"])
            index = cls(dim, str(settings["factory"]), metric, threads=threads)
            trained = _check_header(path, {"dimensions": dim, "vectors": rows, "metric": _METRICS[metric]})
            if trained:  # else there is nothing in it, and some kinds cannot be read back
                index._index = _read_file(path)
            index.set_search_parameters(settings["search_parameters"])
        except storage.StorageError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
            raise storage.StorageError(f"{path}: cannot be read ({_reason(error)}); build the index again") from error
        _compare(path, {"dimensions": dim, "vectors": rows}, {"dimensions": index._index.d, "vectors": len(index)})
        return index

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Publish the index alone as a folder that `load` reads.

        Raises:
            StorageError: the folder exists and `overwrite` is False, or something else is in it.
        """
        manifest: dict[str, Any] = {"kind": KIND}
        with storage.publishing(folder, manifest, overwrite=overwrite) as directory:
            manifest["index"] = self.write(directory)

    @classmethod
    def load(cls, folder: str | Path, *, verify: Verify = "full", threads: int | None = None) -> Self:
        """Read the index of a folder that `save` published, or `publishing` with our `write` in it.

        Raises:
            StorageError: a file is missing, altered or cut off, or is not what the manifest says.
        """
        return storage.read_folder(
            folder,
            lambda found: cls.read(found.path, found.manifest.get("index"), threads=threads),
            kind=KIND,
            verify=verify,
        )

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Use `threads` OpenMP threads in this Python thread, and put back what was set."""
        if self.threads is None:
            yield
            return
        faiss = _faiss()
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self.threads)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before)


def _cut(found: Neighbors, which: Any, k: int, *, ties: bool) -> Neighbors:
    """Return the first k columns of some rows; with `ties` also what equals the k-th."""
    rows, scores = found.rows[which], found.scores[which]
    if not ties or rows.shape[1] <= k:
        return Neighbors(rows[:, :k], scores[:, :k])
    kept = (scores >= scores[:, k - 1 : k]) & (rows >= 0)
    width = max(k, int(kept.sum(axis=1).max(initial=0)))
    return Neighbors(np.where(kept, rows, -1)[:, :width], np.where(kept, scores, -np.inf)[:, :width])


def _check_header(path: Path, expected: Mapping[str, int]) -> bool:
    """Compare the first bytes of the file with the manifest before FAISS allocates what they ask for."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise storage.StorageError(f"{path}: has {len(head)} bytes, expected a header of {_HEADER.size}")
    _, dim, rows, _, _, trained, metric = _HEADER.unpack(head)
    _compare(path, expected, {"dimensions": dim, "vectors": rows, "metric": metric})
    return bool(trained)


def _read_file(path: Path) -> Any:
    faiss = _faiss()
    before = faiss.get_deserialization_vector_byte_limit()
    # Nothing in an index is much larger in memory than on disk: refuse to allocate what a forged length asks.
    faiss.set_deserialization_vector_byte_limit(4 * path.stat().st_size + (1 << 26))
    try:
        return faiss.read_index(str(path))
    finally:
        faiss.set_deserialization_vector_byte_limit(before)


def _compare(path: Path, expected: Mapping[str, int], got: Mapping[str, int]) -> None:
    for key, value in got.items():
        if value != expected[key]:
            raise storage.StorageError(f"{path}: {key} {value}, the manifest says {expected[key]}; build it again")


@contextmanager
def _explaining(action: str) -> Iterator[None]:
    """Turn a C++ exception into a ValueError: what was tried, and why it failed."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{action}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    text = re.sub(r"^Error in .* at .*?\.(?:cpp|h):\d+: ", "", text, flags=re.DOTALL)
    return re.sub(r"^Error: '.*' failed: ?(?=\S)", "", text, flags=re.DOTALL).strip()
