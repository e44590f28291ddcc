"""Checkpoints: everything that the next step depends on, in safetensors and JSON, hashed, never pickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexes.storage import publish_plain, remove_folder, sha256_file
from retrieval.errors import InputError

if TYPE_CHECKING:
    import torch

FORMAT = 1
ARRAYS = "arrays.safetensors"
_STEP = re.compile(r"step-(\d+)")


@dataclass(slots=True)
class Progress:
    """Where a run stands: what a checkpoint remembers beside tensors.

    Attributes:
        step: optimizer steps done.
        best_step, best_score: the best validation so far (nDCG@10 over the pool); step 0 is the start model.
        stale: validations since then.
        metrics: every line of metrics.jsonl so far.
        causes: cells, columns and rows that each id-aware rule has touched.
        losses: of the steps since the last line that has one.
        seconds: spent on training so far, without validating and saving.

    """

    step: int = 0
    best_step: int = -1
    best_score: float = -1.0
    stale: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    causes: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: torch.nn.Module,
    loss: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Publish one checkpoint as `folder`; it is whole or not there. `arrays` are what else the next step depends on."""
    import torch
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    random = {"cpu": torch.get_rng_state()}
    for i in range(torch.cuda.device_count()):
        random[f"cuda{i}"] = torch.cuda.get_rng_state(i)
    moments = {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    with publish_plain(folder) as temporary:
        save_file(_own(model.state_dict()), temporary / "model.safetensors")
        save_file(_own(loss.state_dict()), temporary / "loss.safetensors")
        save_file(_own(moments), temporary / "optimizer.safetensors")
        save_file(_own(random), temporary / "random.safetensors")
        if arrays:
            save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary / ARRAYS)
        hashes = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        state = {"format": FORMAT, "sha256": hashes, "progress": asdict(progress)}
        with (temporary / "state.json").open("w", encoding="utf-8") as file:
            json.dump(state | {"checksum": _checksum(state)}, file, allow_nan=False)


def load_checkpoint(
    folder: Path, model: torch.nn.Module, loss: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Put a checkpoint back into model, loss, optimizer and random number generators, and return where it stood.

    Raises:
        InputError: when a file is missing or altered, or the checkpoint has a newer format.

    """
    import torch
    from safetensors.torch import load_file

    state = _checked_state(folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    loss.load_state_dict(load_file(folder / "loss.safetensors"))
    moments: dict[int, dict[str, Any]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    random = load_file(folder / "random.safetensors")
    torch.set_rng_state(random["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in random:
            torch.cuda.set_rng_state(random[f"cuda{i}"], i)
    return Progress(**state["progress"])


def load_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Return what `save_checkpoint` was given as `arrays`; `load_checkpoint` has compared the file with its hash."""
    from safetensors.numpy import load_file

    return dict(load_file(folder / ARRAYS)) if (folder / ARRAYS).is_file() else {}


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Put a checkpoint's weights into `model`."""
    from safetensors.torch import load_file

    _checked_state(folder)
    model.load_state_dict(load_file(folder / "model.safetensors"))


def _checked_state(folder: Path) -> dict[str, Any]:
    """Return state.json after it has been compared with its checksum, and every file with its hash."""
    fix = "delete this checkpoint and --resume goes on from the one before"
    try:
        state = _read_state(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"state.json cannot be read ({error}); {fix}", path=folder) from None
    if state.get("format") != FORMAT:
        raise InputError(
            f"is a checkpoint of format {state.get('format')}; this version reads {FORMAT}, so go on with the version "
            "that wrote it",
            path=folder,
        )
    for name, expected in state["sha256"].items():
        found = sha256_file(folder / name) if (folder / name).is_file() else "no file"
        if found != expected:
            raise InputError(f"{name} is damaged: sha256 {found[:12]}…, wanted {expected[:12]}…; {fix}", path=folder)
    return state


def _read_state(folder: Path) -> dict[str, Any]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise ValueError("it holds no object")
    checksum = state.pop("checksum", None)
    if checksum != _checksum(state):
        raise ValueError(f"it has been altered: it says checksum {checksum}, its contents have another")
    return state


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def checkpoint_folder(out: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return out / "checkpoints" / f"step-{step}"


def checkpoint_steps(out: Path) -> list[int]:
    """Return the steps of which there are checkpoints, ascending."""
    found = [_STEP.fullmatch(path.name) for path in (out / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def resumable_step(out: Path) -> int | None:
    """Return the newest step to go on from: one whose best checkpoint, from which the model is published, exists too.

    Somebody may have deleted that because it was damaged; going on from before it makes it again. None: from the start.

    Raises:
        InputError: the state of a checkpoint is damaged.

    """
    steps = checkpoint_steps(out)
    for step in reversed(steps):
        best = _checked_state(checkpoint_folder(out, step))["progress"]["best_step"]
        if best < 0 or best in steps:
            return step
    return None


def remove_old_checkpoints(out: Path, *, keep: Iterable[int], limit: int) -> None:
    """Remove all but the newest `limit` checkpoints and those of the steps in `keep`."""
    steps = checkpoint_steps(out)
    for step in set(steps[:-limit]) - set(keep):
        remove_folder(checkpoint_folder(out, step))


def _own(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Give every tensor memory of its own: safetensors refuses shared and strided ones."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
