"""Proof that the ways to a gradient agree: plain, in replayed chunks, in blocks of rows, in several processes.

The measure is the step as a textbook has it: every text embedded with its graph, one matrix of scores, the loss of that
matrix, one backward pass. The other ways are those that training takes. Each is compared in the loss and in the
gradient of every parameter, of the model and of the loss.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from rankers.losses import LOSSES, build_expression
from rankers.random_state import RandomState
from retrieval.attention import set_attention
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.local_processes import run_in_processes
from retrieval.objective import build_loss
from retrieval.precision import resolve_device
from retrieval.selftest_examples import HIGHEST_GRADE, QUERIES, random_batch, random_encoder
from retrieval.selftest_steps import Case, Step, in_blocks, part_of_all, take_step, textbook
from retrieval.steps import backward, steps_ahead
from retrieval.train_config import TrainConfig
from retrieval.training import DualEncoderTask

# Of the largest entry of the gradient. float32 rounds at 6e-8, and a step of a transformer adds some thousand rounded
# numbers in another order in each way: 1e-6 is usual, 1e-5 happens (the tables of mw are exact to 1e-5 as well). A
# mistake (a wrong mask, a lost chunk, other dropout, a sum that is a mean) changes the gradient by 1e-2 and more.
TOLERANCE = 1e-4
# A loss near 0 is a difference of terms of about this size, whose rounding is relative to them and not to it.
_LEAST_LOSS = 0.1
MOST_QUERIES = 9  # of the batch: the plain step must fit into memory; odd, so that two processes hold unequal parts
TIMEOUT = 1_800.0  # seconds


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the gradient, against the textbook's.

    Attributes:
        name: plain, cached, row blocks or "2 processes".
        loss: difference of the losses, relative to the loss; nan where this way was not taken.
        gradient: largest difference of an entry, relative to the largest entry of the gradient; nan likewise.
        where: the parameter that it occurs in.
        note: why the way was not taken, or what is special about it.

    """

    name: str
    loss: float = math.nan
    gradient: float = math.nan
    where: str = ""
    note: str = ""
    taken: bool = True

    @property
    def good(self) -> bool:
        """Whether both differences are within the tolerance; a way that cannot be taken is no failure."""
        return not self.taken or (self.loss <= TOLERANCE and self.gradient <= TOLERANCE)


@dataclass(frozen=True, slots=True)
class Proof:
    """All ways of one loss.

    Attributes:
        loss: its expression.
        ways: of each the differences.

    """

    loss: str
    ways: tuple[Way, ...]

    @property
    def good(self) -> bool:
        """Whether all ways agree."""
        return all(way.good for way in self.ways)


def config_proof(
    config: TrainConfig, *, nproc: int = 2, queries: int = MOST_QUERIES, timeout: float = TIMEOUT
) -> tuple[Proof, Case]:
    """Prove it for the user's model, data, loss and settings, on the first batch of the first epoch.

    Args:
        config: as for `train`; precision is fp32 whatever it says, and nothing is written to `config.out`.
        nproc: processes; 1: none beside this one.
        queries: of the batch, at most.
        timeout: seconds that the processes may take.

    Raises:
        InputError: at settings, a model or data that training would refuse too.
        ProcessError: when a process fails, dies or does not answer in time.

    """
    size = min(config.per_device_train_batch_size, queries)
    config = replace(config, precision="fp32", per_device_train_batch_size=size, batching="random", refresh_every=0)
    run = DualEncoderTask(config, build_loss(config))
    with closing(steps_ahead(run.batcher, run.encoder, first=0, total=1, accumulation=1)) as steps:
        [tokens] = next(steps)
    case = Case.cut(
        config.loss,
        config.loss_settings,
        tokens,
        chunk_size=config.chunk_size,
        views=run.objective.views,
        max_grade=run.data.max_grade,
        queries=len(run.batcher.query_number),
    )
    return prove(run.encoder, [case], nproc=nproc, timeout=timeout)[0], case


def random_proofs(
    expressions: Sequence[str] = tuple(LOSSES),
    settings: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    nproc: int = 2,
    timeout: float = TIMEOUT,
) -> list[Proof]:
    """Prove it for a small random encoder and random batches: every loss of the table, or these.

    Raises:
        InputError: at a loss or a setting that does not exist.

    """
    cases = []
    for expression in expressions:
        try:
            loss = build_expression(expression, settings)
        except (ValueError, TypeError) as error:
            raise InputError(f"loss: {error}") from error
        extra = {"max_grade": float(HIGHEST_GRADE), "queries": QUERIES}
        cases.append(Case.cut(expression, settings or {}, random_batch(loss), **extra))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in a model this small, more of them only wait for each other
    try:
        return prove(random_encoder(resolve_device(device)), cases, nproc=nproc, timeout=timeout)
    finally:
        torch.set_num_threads(threads)


def prove(encoder: Encoder, cases: Sequence[Case], *, nproc: int = 2, timeout: float = TIMEOUT) -> list[Proof]:
    """Take every way for every case and compare.

    Plain and chunked steps run on the encoder's device; those of several processes, and what they are compared with,
    on the CPU without dropout, since each process draws random numbers of its own. There the model then stays.

    Raises:
        InputError: when there are more processes than queries or documents.
        ProcessError: when a process fails, dies or does not answer in time.

    """
    if nproc < 1:
        raise InputError(f"nproc must be >= 1, got {nproc}")
    for case in cases:
        if nproc > min(len(case.tokens.queries), len(case.tokens.documents)):
            queries, documents = len(case.tokens.queries), len(case.tokens.documents)
            raise InputError(f"nproc={nproc} processes cannot share {queries} queries and {documents} documents")
    set_attention(encoder.model, training=True)
    cases = [_moved_on(encoder, case) for case in cases]
    ways = [_alone(encoder, case) for case in cases]
    if nproc > 1:
        together = _together(encoder, cases, nproc, timeout)
        ways = [[*alone, way] for alone, way in zip(ways, together, strict=True)]
    return [Proof(case.expression, tuple(found)) for case, found in zip(cases, ways, strict=True)]


def _moved_on(encoder: Encoder, case: Case) -> Case:
    """Let a loss that keeps a state take one step, so that what is compared is not a query's first visit."""
    loss = case.loss(encoder.model.device)
    if loss.keeps_state:
        take_step(encoder, loss, lambda: backward(encoder, loss, [case.tokens]))
    return replace(case, state={name: value.detach().cpu() for name, value in loss.state_dict().items()})


def _alone(encoder: Encoder, case: Case) -> list[Way]:
    """Compare the ways of one process, where it can be with dropout: what is replayed must draw the same numbers."""
    loss = case.loss(encoder.model.device)
    step = partial(backward, encoder, loss, [case.tokens], views=case.views, keep_state=False)
    random = RandomState.now(encoder.model.device)

    def go(way: Callable[[], float], *, dropout: bool) -> Step:
        random.restore()
        return take_step(encoder, loss, way, dropout=dropout)

    def one_graph() -> float:
        return textbook(encoder, loss, case)

    whole = "in one block: it needs the whole matrix" if loss.needs == "whole matrix" else ""
    still, moving = go(one_graph, dropout=False), go(one_graph, dropout=True)
    plain = go(step, dropout=False)
    cached = go(partial(step, chunk_size=case.chunk_size), dropout=True)
    blocks = go(lambda: in_blocks(encoder, loss, case), dropout=True)
    random.restore()
    return [
        compared("plain", plain, still),
        compared("cached", cached, moving),
        replace(compared("row blocks", blocks, moving), note=whole),
    ]


def _together(encoder: Encoder, cases: Sequence[Case], nproc: int, timeout: float) -> list[Way]:
    """Compare one process with several; these are started once for all cases."""
    name, cpu = f"{nproc} processes", torch.device("cpu")
    encoder.model.to(cpu)
    losses = [case.loss(cpu) for case in cases]
    shared = [case for case, loss in zip(cases, losses, strict=True) if loss.needs != "whole matrix"]
    found: Iterator[Step] = iter(())
    if shared:
        parts = encoder.model, encoder.batch_tokens, shared
        # plain pickle and not multiprocessing's: tensors as bytes, since shared memory is scarce in containers
        answers = run_in_processes(part_of_all, pickle.dumps(parts), nproc, timeout=timeout)
        found = (Step(loss, {n: torch.from_numpy(g) for n, g in gradients.items()}) for loss, gradients in answers[0])
    ways = []
    for case, loss in zip(cases, losses, strict=True):
        if loss.needs == "whole matrix":
            ways.append(Way(name, taken=False, note="not possible: it needs the whole matrix in one process"))
        else:
            wanted = take_step(encoder, loss, lambda loss=loss, case=case: textbook(encoder, loss, case))  # type: ignore[misc]
            ways.append(compared(name, next(found), wanted))
    return ways


def compared(name: str, found: Step, wanted: Step) -> Way:
    """Return the largest differences between a step and the one that it must equal.

    Entries of the model are seen against the largest entry of the model's gradient, learned settings of the loss
    against the largest of both, so that a steep temperature hides nothing in the model. Where nothing has a gradient,
    or it is not finite, the difference is infinite: nothing is proved.
    """
    model = max((float(g.abs().max()) for n, g in wanted.gradients.items() if n.startswith("model.")), default=0.0)
    largest = max((float(g.abs().max()) for g in wanted.gradients.values()), default=0.0)
    if not 0 < largest < math.inf:
        note = "nothing is proved: the gradient is 0" if largest == 0 else "nothing is proved: it is not finite"
        return Way(name, _relative(found.loss, wanted.loss), math.inf, note=note)
    worst, where = -1.0, ""
    for parameter, slope in wanted.gradients.items():
        distance = float((found.gradients[parameter] - slope).abs().max()) if slope.numel() else 0.0
        distance /= model if parameter.startswith("model.") and model > 0 else largest
        if not distance <= worst:  # nan is the worst
            worst, where = distance if distance == distance else math.inf, parameter
    return Way(name, _relative(found.loss, wanted.loss), worst, where)


def _relative(found: float, wanted: float) -> float:
    distance = abs(found - wanted) / max(abs(wanted), _LEAST_LOSS)
    return distance if distance == distance else math.inf
