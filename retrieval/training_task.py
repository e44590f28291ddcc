"""What the training loop asks of the thing that it trains: a dual encoder, a reranker, a feature ranker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from rankers.losses import LossSum, RankingLoss

Step = Any  # what one optimizer step of a task is made of


class Task(Protocol):
    """What a loop trains."""

    @property
    def model(self) -> torch.nn.Module:
        """What the optimizer moves and checkpoints hold, beside the loss."""
        ...

    @property
    def loss(self) -> RankingLoss | LossSum:
        """The loss or sum of losses; learned settings and the state of each query are part of it."""
        ...

    @property
    def unit(self) -> str:
        """What a step is counted in: "pairs", "lists"."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        ...

    @property
    def measure(self) -> str | None:
        """How the score on dev is called in log and result; None where nothing is validated."""
        ...

    def prepare(self) -> None:
        """Make what a run needs beyond what shows that it can run, before its first step."""
        ...

    def steps(self, first: int, total: int) -> Iterator[Step]:
        """Yield the steps from `first` to before `total`; the generator may be closed early."""
        ...

    def gradient(self, step: Step) -> float:
        """Add the gradient of a step to the parameters and return its loss; without gradient where it is not finite."""
        ...

    def names(self, step: Step) -> list[str]:
        """Return how a message names the queries of a step."""
        ...

    def size(self, step: Step) -> int:
        """Return how many units a step holds."""
        ...

    def causes(self, step: Step) -> Mapping[str, int]:
        """Return how often each rule about its data has touched a step."""
        ...

    def observed(self, loss: float) -> dict[str, float]:
        """Return what the log tells of the last step beside its loss, by name; warn where it is a bad sign.

        `loss` is the mean over the steps since the last time.
        """
        ...

    def news(self) -> dict[str, float]:
        """Return what has been found between the steps since the last time, by name: a line of its own in the log."""
        ...

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return what the next step depends on beside model, loss and optimizer: for a checkpoint."""
        ...

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what a checkpoint kept of `arrays`."""
        ...

    def training(self) -> AbstractContextManager[None]:
        """Put the model into training for as long as the context lasts."""
        ...

    def in_use(self) -> AbstractContextManager[None]:
        """Put the model into the state in which it is used, inside `training` or not, and back."""
        ...

    def score(self) -> float:
        """Return the score on dev, larger is better; called `in_use`."""
        ...

    def probe(self) -> tuple[str, float, str]:
        """Return the name of an output, its value, and of which query: finite unless the model is broken."""
        ...

    def measured(self) -> dict[str, float]:
        """Return what else is measured of the last and of the best model, by name; called `in_use` at the end."""
        ...

    def publish(self, folder: Path, scores: Mapping[str, float]) -> None:
        """Publish the model as `folder`, which does not exist."""
        ...


class NothingBetweenSteps:
    """The part of a task that looks at no step, does nothing between two, and keeps nothing of them."""

    def observed(self, loss: float) -> dict[str, float]:
        """Return nothing beside the loss."""
        return {}

    def news(self) -> dict[str, float]:
        """Find nothing between the steps."""
        return {}

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return nothing: a step depends on model, loss and optimizer alone."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Have nothing to go on from."""
