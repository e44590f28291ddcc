"""Settings that every training shares: one frozen dataclass whose fields are YAML keys, `--set` keys and flags.

A verb's own settings extend it (:class:`retrieval.train_config.TrainConfig` and its kin), so that an optimizer setting
is named, checked, saved and read in one way.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from retrieval.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """Settings of one run of the training loop; names that Hugging Face's TrainingArguments has mean the same here."""

    NEEDED: ClassVar[tuple[str, ...]] = ("out",)  # fields without which there is nothing to do
    LEAST: ClassVar[Mapping[str, float]] = {}  # field → the smallest value, of the fields that a verb adds
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # field → its values, likewise

    out: str  # the run folder
    # the loss
    loss: str = "infonce"  # a name of the table, or a sum: "bixse + 0.5*ranknet"
    loss_settings: Mapping[str, Any] = field(
        default_factory=dict
    )  # `loss.` keys, such as loss.temperature; in a sum loss.NAME.temperature
    # the optimizer: AdamW with linear warm-up and decay
    per_device_train_batch_size: int = 32  # queries of a batch
    gradient_accumulation_steps: int = 1  # batches per optimizer step
    learning_rate: float = 2e-5
    num_train_epochs: float = 1.0
    max_steps: int = -1  # optimizer steps; > 0 wins over num_train_epochs
    warmup_ratio: float = 0.1  # share of all steps
    loss_learning_rate: float | None = None  # of learned settings of the loss; None: 100 × learning_rate
    weight_decay: float = 0.01  # not on biases and normalisation weights
    max_grad_norm: float = 1.0  # 0 turns clipping off
    # validation, logging, checkpoints
    eval_strategy: str = "epoch"  # no | epoch | steps
    eval_steps: int = 500  # optimizer steps, with eval_strategy=steps
    early_stopping_patience: int = 0  # validations without a better score before the run stops; 0: never
    logging_steps: int = 10  # optimizer steps
    save_steps: int = 500  # optimizer steps
    save_total_limit: int = 2  # checkpoints kept beside the best one
    # the machine
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        least = {**_LEAST, **self.LEAST}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{f.name} must be a finite number, got {value}")
            if value is not None and f.name in least and value < least[f.name]:
                raise InputError(f"{f.name} must be >= {least[f.name]}, got {value}")
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2**63, got {self.seed}")
        self._refuse_impossible_training()
        for name, known in {**_CHOICES, **self.CHOICES}.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"unknown {name} {value!r}{did_you_mean(str(value), known)}")

    def _refuse_impossible_training(self) -> None:
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be > 0, got {self.learning_rate}")
        if self.loss_learning_rate is not None and not self.loss_learning_rate > 0:
            raise InputError(f"loss_learning_rate must be > 0, got {self.loss_learning_rate}")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warmup_ratio is a share of all steps, 0 to 1; got {self.warmup_ratio}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(f"max_steps must be > 0, or -1 for num_train_epochs; got {self.max_steps}")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise InputError(f"num_train_epochs must be > 0, got {self.num_train_epochs}")

    def total_steps(self, in_epoch: int) -> int:
        """Return the optimizer steps of the run, of an epoch of which so many are."""
        return self.max_steps if self.max_steps > 0 else max(1, math.ceil(self.num_train_epochs * in_epoch))

    @property
    def reads(self) -> tuple[str, ...]:
        """Files and folders that a run reads, none of which may be deleted with an old run."""
        return ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from flat keys; `loss.NAME` keys become `loss_settings`.

        Raises:
            InputError: at an unknown key (naming the nearest), a missing one, or a value of the wrong type.

        """
        types = {f.name: str(f.type) for f in fields(cls)}
        given: dict[str, Any] = {}
        settings = values.get("loss_settings") or {}
        if not isinstance(settings, Mapping):
            raise InputError(f"setting 'loss_settings' got {settings!r}; wanted a mapping")
        loss = {str(name): value for name, value in settings.items()}
        for key, value in values.items():
            if key.startswith("loss.") and key != "loss.name":
                loss[key.removeprefix("loss.")] = value
            elif key != "loss_settings":
                name = "loss" if key == "loss.name" else key
                if name not in types:
                    raise InputError(f"unknown setting {key!r}{did_you_mean(key, types)}")
                given[name] = _typed(name, value, types[name])
        missing = [name for name in cls.NEEDED if not given.get(name)]
        if missing:
            raise InputError("missing " + ", ".join(f"--{name}" for name in missing))
        return cls(**given, loss_settings=loss)

    def to_dict(self) -> dict[str, Any]:
        """Return flat keys that :meth:`from_dict` turns back into this config."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "loss_settings"}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return values | {f"loss.{name}": value for name, value in sorted(self.loss_settings.items())}


_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "eval_steps": 1,
    "early_stopping_patience": 0,
    "logging_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
    "seed": 0,
}
_CHOICES = {"eval_strategy": ("no", "epoch", "steps")}


def _parts(value: Any) -> list[Any]:
    """Return the entries of a list, of "384,128", of both, or of one number."""
    values = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
    return [part for one in values for part in (one.replace(",", " ").split() if isinstance(one, str) else [one])]


def _typed(name: str, value: Any, annotation: str) -> Any:
    """Give `value` the field's type, or say what was wanted."""
    if value is None and "None" in annotation:
        return None
    base = annotation.split(" ")[0]
    if base == "tuple[str,":
        if isinstance(value, str | Path):
            return (str(value),)
        if value is None or isinstance(value, list | tuple):
            return tuple(map(str, value or ()))
    if base == "tuple[int,":
        return tuple(_typed(name, part, "int") for part in _parts(value))
    if base == "bool" and isinstance(value, bool):
        return value
    if base == "str" and isinstance(value, str | int | float | Path) and not isinstance(value, bool):
        return str(value)
    if base in ("int", "float") and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if base == "float":
                return float(value)
            number = value if isinstance(value, int) else float(value)
            if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
                number = int(value)  # a seed of 60 bits survives
            if number == int(number):
                return int(number)
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}.get(base, "a list")
    raise InputError(f"setting {name!r} got {value!r}; wanted {wanted}")
