"""Settings of a training run: one frozen dataclass whose fields are YAML keys, `--set` keys and flags."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from retrieval.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of one dual-encoder run; names that Hugging Face's TrainingArguments has mean the same here."""

    # what is trained on what
    model: str  # folder, training --out, hub id, or package:MODULE/SUBPATH
    data: str  # BEIR folder, irds:ID, or pydocs
    out: str  # the run folder
    rows: tuple[str, ...] = ()  # JSONL files of training rows; none: rows are made from the training split's qrels
    train_split: str = "train"
    dev_split: str = "dev"  # absent from the collection: carved from the training queries by hash
    # the loss
    loss: str = "infonce"  # a name of the table, or a sum: "bixse + 0.5*ranknet"
    loss_settings: Mapping[str, Any] = field(
        default_factory=dict
    )  # `loss.` keys, such as loss.temperature; in a sum loss.NAME.temperature
    matryoshka_dims: tuple[int, ...] = ()  # first dimensions that must serve alone; the losses of all are added
    # the batch
    per_device_train_batch_size: int = 32  # queries that share their documents as in-batch negatives
    gradient_accumulation_steps: int = 1  # batches per optimizer step
    chunk_size: int | None = None  # texts embedded with their graph at once: any batch size; None: a whole batch
    num_positives: int = 1  # relevant documents per query and epoch, drawn by the seed
    num_negatives: int = 7  # given (mined) negatives per query and epoch, drawn by the seed; fewer where fewer exist
    # the optimizer: AdamW with linear warm-up and decay
    learning_rate: float = 2e-5
    num_train_epochs: float = 1.0
    max_steps: int = -1  # optimizer steps; > 0 wins over num_train_epochs
    warmup_ratio: float = 0.1  # share of all steps
    loss_learning_rate: float | None = None  # of learned settings of the loss; None: 100 × learning_rate
    sam_rho: float = 0.0  # > 0: sharpness-aware steps, of this radius; two gradients a step
    weight_decay: float = 0.01  # not on biases and normalisation weights
    max_grad_norm: float = 1.0  # 0 turns clipping off
    # validation, logging, checkpoints
    eval_strategy: str = "epoch"  # no | epoch | steps
    eval_steps: int = 500  # optimizer steps, with eval_strategy=steps
    eval_pool_size: int = 3_000  # documents that dev queries are validated on during training
    eval_full: bool = True  # best and last model are also measured on the full corpus at the end
    early_stopping_patience: int = 0  # validations without a better nDCG@10 before the run stops; 0: never
    logging_steps: int = 10  # optimizer steps
    save_steps: int = 500  # optimizer steps
    save_total_limit: int = 2  # checkpoints kept beside the best one
    # texts
    query_max_length: int | None = None  # tokens, special ones included; None: the model's own
    document_max_length: int | None = None
    query_prompt: str | None = None  # None: the model's own
    document_prompt: str | None = None
    pooling: str | None = None  # for a plain HF encoder: mean, cls, max or lasttoken
    batch_tokens: int | None = None  # tokens of one forward pass, padding included; None: what suits the device
    # the machine
    seed: int = 0
    precision: str = "auto"  # auto | fp32 | bf16
    device: str = "auto"

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{f.name} must be a finite number, got {value}")
            if value is not None and f.name in _LEAST and value < _LEAST[f.name]:
                raise InputError(f"{f.name} must be >= {_LEAST[f.name]}, got {value}")
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2**63, got {self.seed}")
        self._refuse_impossible_training()
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"unknown {name} {value!r}{did_you_mean(str(value), known)}")

    def _refuse_impossible_training(self) -> None:
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be > 0, got {self.learning_rate}")
        if self.loss_learning_rate is not None and not self.loss_learning_rate > 0:
            raise InputError(f"loss_learning_rate must be > 0, got {self.loss_learning_rate}")
        if any(dim < 1 for dim in self.matryoshka_dims) or len(set(self.matryoshka_dims)) < len(self.matryoshka_dims):
            raise InputError(f"matryoshka_dims must be different numbers > 0, got {list(self.matryoshka_dims)}")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warmup_ratio is a share of all steps, 0 to 1; got {self.warmup_ratio}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(f"max_steps must be > 0, or -1 for num_train_epochs; got {self.max_steps}")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise InputError(f"num_train_epochs must be > 0, got {self.num_train_epochs}")
        if self.per_device_train_batch_size == 1 and self.num_negatives == 0:
            raise InputError("per_device_train_batch_size=1 with num_negatives=0 leaves no negatives; raise either")

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
        missing = [name for name in ("model", "data", "out") if not given.get(name)]
        if missing:
            raise InputError("missing " + ", ".join(f"--{name}" for name in missing))
        return cls(**given, loss_settings=loss)

    def to_dict(self) -> dict[str, Any]:
        """Return flat keys that :meth:`from_dict` turns back into this config."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "loss_settings"}
        values |= {"rows": list(self.rows), "matryoshka_dims": list(self.matryoshka_dims)}
        return values | {f"loss.{name}": value for name, value in sorted(self.loss_settings.items())}


_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_positives": 1,
    "num_negatives": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "eval_steps": 1,
    "eval_pool_size": 1,
    "early_stopping_patience": 0,
    "logging_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
    "batch_tokens": 1,
    "chunk_size": 1,
    "sam_rho": 0,
    "seed": 0,
}
_CHOICES = {"eval_strategy": ("no", "epoch", "steps"), "precision": ("auto", "fp32", "bf16")}


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
