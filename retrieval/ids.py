"""The ids of many documents in little memory: one blob of bytes, where each ends, and sorted hashes."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError

_LARGEST = (1 << 32) - 1
_BLOCK = 1 << 20


class IdTable(Sequence[str]):
    """A sequence of strings that also finds the row of a string; about 12 bytes each on top of their UTF-8.

    `table[row]` is a string, `table.find(text)` its row. The look-up is a binary search over 32 bits of hash
    and then compares the strings themselves, so equal hashes cost time and never an answer.

    Args:
        blob: all ids as UTF-8, one behind the other.
        ends: (n,) uint32, where each id ends in `blob`.
        keys: (n,) uint64 ascending, hash << 32 | row.
    """

    def __init__(self, blob: bytes | bytearray, ends: NDArray[np.uint32], keys: NDArray[np.uint64]) -> None:
        self.blob, self.ends, self._keys = blob, ends, keys

    @classmethod
    def build(cls, ids: Iterable[str]) -> IdTable:
        """Make the table from ids in row order; it may hold duplicates, which `duplicates()` lists.

        Raises:
            InputError: the ids need more than 4 GiB.
        """
        blob, ends, keys = bytearray(), array("I"), array("Q")
        for row, text in enumerate(ids):
            data = text.encode("utf-8")
            blob += data
            if len(blob) > _LARGEST:
                raise InputError(f"the first {row + 1:,} ids need more than 4 GiB; shorten them")
            ends.append(len(blob))
            keys.append(zlib.crc32(data) << 32 | row)
        table = np.frombuffer(keys, dtype=np.uint64) if keys else np.zeros(0, dtype=np.uint64)
        table.sort()  # in place: an argsort would need as much again
        places = np.frombuffer(ends, dtype=np.uint32) if ends else np.zeros(0, dtype=np.uint32)
        return cls(blob, places, table)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._bytes(row).decode("utf-8") for row in range(len(self))[index]]
        return self._bytes(range(len(self))[index]).decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self._bytes(row).decode("utf-8") for row in range(len(self)))

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self.find(text) is not None

    def find(self, text: str) -> int | None:
        """Return the first row that holds `text`, or None."""
        data = text.encode("utf-8", "surrogatepass")
        code = zlib.crc32(data)
        at = int(np.searchsorted(self._keys, np.uint64(code << 32)))
        while at < len(self._keys) and int(self._keys[at]) >> 32 == code:
            row = int(self._keys[at]) & _LARGEST
            if self._bytes(row) == data:
                return row
            at += 1
        return None

    def duplicates(self) -> list[tuple[int, int]]:
        """Return (first row, later row) for every id that was there before, by later row."""
        same = self._equal_hashes()
        found: list[tuple[int, int]] = []
        firsts: dict[bytes, int] = {}
        for at in np.union1d(same, same + 1).tolist():  # rows ascend within equal hashes
            row = int(self._keys[at]) & _LARGEST
            first = firsts.setdefault(self._bytes(row), row)
            if first != row:
                found.append((first, row))
        return sorted(found, key=lambda pair: pair[1])

    def _equal_hashes(self) -> NDArray[np.int64]:
        """Return the places in `keys` whose hash the next has too, by blocks: a copy would cost as much again."""
        places = [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(self), _BLOCK):
            codes = self._keys[start : start + _BLOCK + 1] >> np.uint64(32)
            places.append(np.flatnonzero(codes[1:] == codes[:-1]) + start)
        return np.concatenate(places)

    def _bytes(self, row: int) -> bytes:
        start = int(self.ends[row - 1]) if row else 0
        return bytes(self.blob[start : int(self.ends[row])])
