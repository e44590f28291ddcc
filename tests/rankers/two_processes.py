"""One batch in one process or in several: run by torchrun, each process leaves what it found in a file of its own.

`torchrun … two_processes.py FOLDER` goes through all cases with one group, since starting it takes seconds.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankers.engine import RowTargets, Views, gradients
from rankers.losses import LOSSES, build_expression
from rankers.processes import Alone

QUERIES, DOCUMENTS, DIM = 7, 12, 5
BLOCK = 20  # scores: a row or two


@dataclass(frozen=True)
class Case:
    """A loss, and how many queries and documents the first process holds; the second holds the others."""

    expression: str
    settings: dict[str, Any] = field(default_factory=dict)
    queries: int = 5
    documents: int = 4
    views: Views | None = None

    def loss(self):
        loss = build_expression(self.expression, self.settings).double()
        loss.remember(QUERIES)
        loss.max_grade = 4.0
        return loss.double()


CASES = {name: Case(name) for name in LOSSES} | {
    "symmetric": Case("infonce", {"symmetric": True}),
    "symmetric and hard": Case("infonce", {"symmetric": True, "hardness": 2.0}),
    "learned": Case("bixse", {"scale": "learned", "bias": "learned"}),
    "learned temperature": Case("infonce", {"temperature": "learned"}),
    "learned in a sum": Case("bixse + 0.5*ranknet", {"bixse.scale": "learned"}),
    "sum with state": Case("isogclr + 0.3*mw + 0.1*infonce"),
    "matryoshka": Case("infonce", views=Views.matryoshka({5: 1.0, 2: 0.5})),
    "no query in the second": Case("infonce", queries=QUERIES),
    "no query in the first, with tables": Case("mw", queries=0),
    "no document in the first": Case("bixse", {"scale": "learned"}, documents=0),
    "n log n, uneven": Case("soft_topk", queries=1, documents=11),
}


class Batch:
    """Unit embeddings and labels of the loss's kind; rows come in the order of their queries, two of some."""

    def __init__(self, case: Case, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.loss = case.loss()
        unit = [torch.randn(n, DIM, generator=generator, dtype=torch.float64) for n in (QUERIES, DOCUMENTS)]
        self.queries, self.documents = (nn.functional.normalize(x, dim=1) for x in unit)
        self.row_query = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6, 6])
        shape = len(self.row_query), DOCUMENTS
        levels = torch.randint(0, 5, shape, generator=generator).double()
        kind = self.loss.kind
        labels = {"probability": levels / 4, "teacher": levels - 2.5, "binary": (levels > 3).double()}
        self.labels = labels.get(kind, levels)
        self.where = torch.rand(shape, generator=generator) < 0.8
        self.where_columns = self.where & (torch.rand(shape, generator=generator) < 0.9)
        if self.loss.keeps_state:  # not the first visit of every query
            state = self.loss.recall(torch.arange(QUERIES))
            for name, values in state.items():
                if name.endswith("log_average"):
                    values[::2] = torch.linspace(-1, 1, len(values[::2]), dtype=torch.float64)
            self.loss.keep(torch.arange(QUERIES), state)


@dataclass(frozen=True)
class Part:
    """The targets of some rows, against all documents."""

    batch: Batch
    ours: torch.Tensor

    def __len__(self):
        return len(self.ours)

    def rows(self, start, stop):
        ours, batch = self.ours[start:stop], self.batch
        at_call = {"where_columns": batch.where_columns[ours]} if batch.loss.is_symmetric else {}
        return RowTargets(batch.labels[ours], batch.where[ours], at_call)


def found(case: Case, rank: int, processes, block: int = BLOCK) -> dict[str, Any]:
    """What one process finds with its own queries and documents: everything that a trainer needs."""
    batch = Batch(case)
    queries, documents = (torch.arange(n) for n in (QUERIES, DOCUMENTS))
    if processes.count == 2:
        queries = queries[: case.queries] if rank == 0 else queries[case.queries :]
        documents = documents[: case.documents] if rank == 0 else documents[case.documents :]
    ours = torch.isin(batch.row_query, queries).nonzero().squeeze(1)
    rows = batch.row_query[ours]
    step = gradients if case.views is None else case.views.gradients
    result = step(
        batch.loss,
        batch.queries[queries],
        batch.documents[documents],
        Part(batch, ours),
        row_query=rows - (queries[0] if len(queries) else 0),
        block=block,
        state=batch.loss.recall(rows),
        processes=processes,
    )
    return {
        "loss": result.loss,
        "queries": result.queries,
        "documents": result.documents,
        "state": result.state,
        "rows": ours,
        "learned": {name: torch.zeros(()) if p.grad is None else p.grad for name, p in batch.loss.named_parameters()},
    }


def refusal(processes) -> str:
    """What a loss says that needs the whole matrix."""
    try:
        found(Case("mw", {"method": "exact"}), 0, processes)
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    import torch.distributed as dist

    from rankers.processes import TorchProcesses

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    processes, rank = TorchProcesses(), dist.get_rank()
    everything = {name: found(case, rank, processes) for name, case in CASES.items()}
    primitives = {
        "gathered": processes.gather_rows(torch.arange(2.0)[: rank + 1] + 10 * rank),
        "ragged": processes.gather_rows(torch.ones(3 * rank, 2)),
        "summed": processes.sum_rows(torch.tensor([1.0, 2.0, 3.0]) * (rank + 1), own=1 + rank),
        "numbers": processes.sum_numbers({"pairs": torch.tensor(2**53 + 1 if rank else 1), "share": torch.tensor(0.5)}),
        "objects": processes.gather({"rank": rank} if rank else None),
    }
    torch.save({"found": everything, "primitives": primitives, "refusal": refusal(processes)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def alone(case: Case) -> dict[str, Any]:
    """The same in one process, all rows in one block."""
    return found(case, 0, Alone(), block=10**9)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
