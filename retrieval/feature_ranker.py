"""A trained feature ranker: the features that it knows, how they are normalised, and what scores them.

Its folder holds `features.json` (numbers, names, normalisation), `model.safetensors` (a network) or `model.txt`
(LightGBM's trees), and the manifest of `indexes.storage` with the scorer's kind and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from indexes.storage import Artifact, publishing, read_folder, write_json, write_text
from retrieval.errors import InputError, require
from retrieval.feature_normalisation import Normalisation
from retrieval.lambdamart import Trees
from retrieval.svmlight import FeatureLists

if TYPE_CHECKING:
    from rankers.feature_scorers import FeatureScorer

KIND = "feature-ranker"
_PLACES = 1 << 16  # documents of one forward pass, padding included

Lists = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class FeatureRanker:
    """Scores lists of documents by their features; larger is better.

    Attributes:
        kind: linear, mlp, context or lambdamart.
        numbers: (features,) the feature numbers that it was trained on, ascending: the columns of a list.
        names: their names, "" where the training file gave none; None where it named none.
        normalisation: fitted on the training lists.
        model: a network or trees.
        architecture: what the network is built from; empty for trees.

    """

    kind: str
    numbers: NDArray[np.int64]
    names: list[str] | None
    normalisation: Normalisation
    model: FeatureScorer | Trees
    architecture: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a folder that `save` wrote, or the run folder of `train-ltr`, whose `model/` it then is.

        Raises:
            InputError: there is no such folder or no feature ranker in it, or LightGBM is needed and not installed.
            StorageError: a file was altered or is missing.

        """
        place = Path(folder).expanduser()
        if not place.is_dir():
            raise InputError("is a file; wanted a folder" if place.exists() else "no such folder", path=folder)
        inside = [path for path in (place, place / "model") if (path / "CURRENT").is_file()]
        if not inside:
            unfinished = (place / "checkpoints").is_dir()
            fix = (
                "the run did not finish; go on with --resume" if unfinished else "train one with: rankwright train-ltr"
            )
            raise InputError(f"holds no feature ranker: {fix}", path=folder)
        return read_folder(inside[0], cls._read, kind=KIND)

    @classmethod
    def _read(cls, artifact: Artifact) -> Self:
        kind, architecture = artifact.manifest["scorer"], artifact.manifest["architecture"]
        features = json.loads((artifact.path / "features.json").read_text(encoding="utf-8"))
        model = Trees.load(artifact.path / "model.txt") if kind == "lambdamart" else _network(artifact, architecture)
        return cls(
            kind,
            np.array(features["numbers"], dtype=np.int64),
            features["names"],
            Normalisation.from_dict(features["normalisation"]),
            model,
            architecture,
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Publish the ranker as a folder.

        Raises:
            StorageError: something is in the way.

        """
        manifest: dict[str, Any] = {"kind": KIND, "scorer": self.kind, "architecture": dict(self.architecture)}
        with publishing(folder, manifest, overwrite=overwrite) as place:
            features = {
                "numbers": self.numbers.tolist(),
                "names": self.names,
                "normalisation": self.normalisation.to_dict(),
            }
            write_json(place / "features.json", features)
            if isinstance(self.model, Trees):
                write_text(place / "model.txt", self.model.to_text())
            else:
                from safetensors.torch import save_file

                weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
                save_file(weights, place / "model.safetensors")

    def score(self, lists: Lists) -> list[NDArray[np.float32]]:
        """Score the documents of lists.

        Args:
            lists: for each query a (docs, features) array whose columns are `numbers`; nan = missing. A list may be
                empty. The context-aware scorer looks at all documents of a list, so give it whole.

        Returns:
            For each list a (docs,) float32 array, finite.

        Raises:
            InputError: another number of features, or a value that is infinite.

        """
        wanted = len(self.numbers)
        for place, own in enumerate(lists):
            if own.ndim != 2 or own.shape[1] != wanted:
                shape = tuple(own.shape)
                raise InputError(f"list {place}: wanted (docs, {wanted}) features as the ranker has, got {shape}")
            if np.isinf(own).any():
                raise InputError(f"list {place}: a feature is infinite; nan stands for one that is missing")
        if isinstance(self.model, Trees):
            normalised = [self.normalisation.apply(own, keep_missing=True) for own in lists]
            return self.model.score(normalised)
        return score_network(self.model, [self.normalisation.apply(own) for own in lists])

    def score_lists(self, lists: FeatureLists, path: str | Path | None = None) -> list[NDArray[np.float32]]:
        """Score lists from a file; features that the ranker does not know are ignored, those it lacks are missing.

        Args:
            lists: with any features.
            path: the file, for messages.

        Raises:
            InputError: a feature has a name, and had another one in training.

        """
        lists.check_names(self.numbers, self.names, path=path)
        return self.score(lists.align(self.numbers).split_features())

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the scores, as JSON values."""
        import hashlib

        digest = hashlib.sha256()
        if isinstance(self.model, Trees):
            digest.update(self.model.to_text().encode())
        else:
            for name, value in sorted(self.model.state_dict().items()):
                digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        normalisation = json.dumps(self.normalisation.to_dict(), sort_keys=True)
        return {
            "scorer": self.kind,
            "architecture": dict(self.architecture),
            "features": self.numbers.tolist(),
            "names": self.names,
            "normalisation_sha256": hashlib.sha256(normalisation.encode()).hexdigest(),
            "weights_sha256": digest.hexdigest(),
        }


def score_network(model: FeatureScorer, lists: Lists) -> list[NDArray[np.float32]]:
    """Score normalised lists by a network as it is used, lists of like length together."""
    import torch

    from rankers.lists import pad, valid_entries

    device = next(model.parameters()).device
    found: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(lists)
    is_training = model.training
    model.eval()
    with torch.inference_mode():
        for places in _batches([len(own) for own in lists]):
            where = valid_entries([len(lists[place]) for place in places])
            features = pad(torch.from_numpy(np.concatenate([lists[place] for place in places])), where)
            scores = model(features.to(device), where.to(device)).float().cpu().numpy()
            for row, place in enumerate(places):
                found[place] = scores[row, : len(lists[place])].copy()
    model.train(is_training)
    return found


def _batches(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield places of lists, longest first, so that a batch holds about `_PLACES` documents; empty lists in none."""
    batch: list[int] = []
    for place in sorted((place for place, size in enumerate(sizes) if size), key=lambda place: -sizes[place]):
        if batch and (len(batch) + 1) * sizes[batch[0]] > _PLACES:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _network(artifact: Artifact, architecture: Mapping[str, Any]) -> FeatureScorer:
    require("torch", "train")
    from safetensors.torch import load_file

    from rankers.feature_scorers import FeatureScorer

    model = FeatureScorer(**architecture)
    model.load_state_dict(load_file(artifact.path / "model.safetensors"))
    return model.eval()
