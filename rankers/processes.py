"""What the engine needs of a process group: rows gathered, gradients and numbers summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Processes(Protocol):
    """The processes that share a batch."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in their order; each may bring another number of them."""
        ...

    def sum_rows(self, rows: Tensor, own: int) -> Tensor:
        """Return this process's `own` rows of the sum over processes of what each holds for all rows."""
        ...

    def sum_numbers(self, numbers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the sums over processes of () numbers."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over processes."""
        ...

    def gather(self, found: Any) -> list[Any]:
        """Return what each process has found, in their order."""
        ...


class Alone:
    """One process."""

    count = 1

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows

    def sum_rows(self, rows: Tensor, own: int) -> Tensor:
        """Return the rows."""
        return rows

    def sum_numbers(self, numbers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the numbers."""
        return numbers

    def sum(self, value: Tensor) -> Tensor:
        """Return the value."""
        return value

    def gather(self, found: Any) -> list[Any]:
        """Return it alone."""
        return [found]


class TorchProcesses:
    """The processes of an initialised `torch.distributed` group, as torchrun starts them."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.count, self._rank = dist.get_world_size(group), dist.get_rank(group)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Pad to the longest, gather, and cut."""
        sizes = self._sizes(len(rows), rows.device)
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded.contiguous(), group=self._group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum_rows(self, rows: Tensor, own: int) -> Tensor:
        """Sum over processes and return the rows that this one brought."""
        start = sum(self._sizes(own, rows.device)[: self._rank])
        return self.sum(rows)[start : start + own]

    def sum_numbers(self, numbers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Sum each number over processes, in float64: pairs of a large batch exceed float32's whole numbers."""
        summed = {name: self.sum(number.double()) for name, number in numbers.items()}
        return {name: value.to(numbers[name].dtype) for name, value in summed.items()}

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes, in a new tensor."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self._group)
        return total

    def gather(self, found: Any) -> list[Any]:
        """Gather objects of tensors; every process gets the same list, in the order of ranks."""
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, found, group=self._group)
        return parts

    def _sizes(self, own: int, device: torch.device) -> list[int]:
        sizes = [torch.zeros((), dtype=torch.long, device=device) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor(own, device=device), group=self._group)
        return [int(size) for size in sizes]
