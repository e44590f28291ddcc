"""Training of feature rankers: networks by the one training loop, trees by LightGBM; both leave the same run folder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexes.storage import locked
from retrieval.errors import InputError, require
from retrieval.feature_evaluation import MEASURE, MEASURES, means, measure_lists
from retrieval.feature_normalisation import Normalisation
from retrieval.feature_ranker import FeatureRanker, score_network
from retrieval.lambdamart import check_suits_trees, train_trees
from retrieval.ltr_config import LtrConfig, build_ltr_loss
from retrieval.ltr_data import LtrData, load_ltr_data
from retrieval.run_folder import RunFolder
from retrieval.svmlight import FeatureLists, read_svmlight
from retrieval.training_loop import planned_steps, run_training
from retrieval.training_task import NothingBetweenSteps

if TYPE_CHECKING:
    from torch import Tensor

    from rankers.losses import LossSum, RankingLoss

logger = logging.getLogger(__name__)

VERB = "train-ltr"


@dataclass(frozen=True, slots=True)
class LtrResult:
    """What a finished run gave.

    Attributes:
        out: the run folder; `out/model` is the best model.
        steps: optimizer steps done, or trees grown.
        best_step: the step of the best model, or how many trees it has.
        dev: nDCG@5 and nDCG@10 of the best model in both gains (of a network's last one too), by name.
        test: the same of the best model on the test lists; empty without them.

    """

    out: Path
    steps: int
    best_step: int
    dev: dict[str, float]
    test: dict[str, float]


def train_ltr(
    config: LtrConfig | None = None, *, resume: bool = False, overwrite: bool = False, **settings: Any
) -> LtrResult:
    """Train a feature ranker and leave its run folder.

    `config.out` then holds `model/` (`retrieval.feature_ranker`: the best model on dev, or the last one where nothing
    is validated), `config.yaml`, `metrics.jsonl`, `environment.json`, `result.json` and, of a network, `checkpoints/`.

    Args:
        config: the settings; or give them as keywords, `loss.` keys through a dict: `**{"loss.temperature": 0.5}`.
        resume: go on from the last checkpoint, to the same weights bit for bit; trees are grown anew.
        overwrite: delete an existing run folder first.

    Raises:
        InputError: at impossible settings (before data is read) and bad data.
        TrainingStoppedError: when the loss or a gradient is not finite.

    """
    config = _config(config, settings)
    if config.scorer == "lambdamart":
        result = _grow(config, resume=resume, overwrite=overwrite)
    else:
        make_task = partial(_begun, config, build_ltr_loss(config))
        done = run_training(config, make_task, verb=VERB, resume=resume, overwrite=overwrite)
        result = LtrResult(done.out, done.steps, done.best_step, done.dev, {})
    return _tested(config, result)


def dry_run(config: LtrConfig, *, resume: bool = False, overwrite: bool = False) -> int:
    """Check settings, run folder and data as `train_ltr` would, write nothing, return the number of steps."""
    config = _config(config, {})
    if config.scorer == "lambdamart":
        require("lightgbm", "ltr")
        RunFolder(Path(config.out), VERB).check(config, resume=resume, overwrite=overwrite)
        _tree_data(config)
        return config.num_trees
    make_task = partial(_begun, config, build_ltr_loss(config))
    return planned_steps(config, make_task, verb=VERB, resume=resume, overwrite=overwrite)


def _config(config: LtrConfig | None, settings: dict[str, Any]) -> LtrConfig:
    require("torch", "train")
    if config is None or settings:
        return LtrConfig.from_dict((config.to_dict() if config else {}) | settings)
    return config


def _begun(config: LtrConfig, loss: RankingLoss | LossSum) -> tuple[FeatureTask, dict[str, str]]:
    data = load_ltr_data(config)
    return FeatureTask(config, loss, data), {"data": data.fingerprint}


def _tree_data(config: LtrConfig) -> LtrData:
    data = load_ltr_data(config)
    check_suits_trees(data.train, config)
    return data


def _fitted(config: LtrConfig, data: LtrData) -> Normalisation:
    return Normalisation.fit(data.train.features, kind=config.normalisation, missing=config.missing)


def _measured(lists: FeatureLists, scores: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    return means(measure_lists(lists, scores, MEASURES))


class FeatureTask(NothingBetweenSteps):
    """A network and the lists that it is trained and validated on.

    Attributes:
        model, loss: what the loop trains.
        data: the lists.
        normalisation: fitted on the training lists.

    """

    unit = "lists"

    def __init__(self, config: LtrConfig, loss: RankingLoss | LossSum, data: LtrData) -> None:
        import torch

        from rankers.feature_scorers import FeatureScorer
        from rankers.losses import LossSum
        from retrieval.precision import resolve_device

        torch.manual_seed(config.seed)
        self.config, self.loss, self.data = config, loss, data
        self.normalisation = _fitted(config, data)
        self.architecture = config.architecture(len(data.train.numbers))
        self.device = resolve_device(config.device)
        self.model = FeatureScorer(**self.architecture).to(self.device)
        self.max_grade = max(1.0, float(data.train.labels.max()))
        if isinstance(loss, LossSum):
            loss.max_grade = self.max_grade
        loss.to(self.device)
        self._refuse_long_lists()
        self._refuse_labels()
        self.features = [self.normalisation.apply(own) for own in data.train.split_features()]
        self.labels = data.train.split_labels()
        self.dev = [] if data.dev is None else [self.normalisation.apply(own) for own in data.dev.split_features()]
        self.lists_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(len(data.train) / self.lists_per_step)
        self.measure = None if data.dev is None else MEASURE

    def _refuse_long_lists(self) -> None:
        longest = int(self.data.train.sizes.max())
        for term in self.loss.terms:
            limit = term.settings.get("max_list")
            if limit is not None and longest > limit:
                query_id = self.data.train.query_ids[int(self.data.train.sizes.argmax())]
                message = (
                    f"loss: {term.name} compares all pairs of a list, and that of query {query_id!r} has {longest}"
                )
                raise InputError(f"{message} documents; allow it with --set loss.max_list={longest}")

    def _refuse_labels(self) -> None:
        """Try the loss on a document of each grade, so that a grade that it refuses is found before the run begins."""
        train = self.data.train
        grades, rows = np.unique(train.labels, return_index=True)
        if not self._refusal(grades):
            return
        for row in np.sort(rows).tolist():
            if reason := self._refusal(train.labels[row : row + 1]):
                shown = f"query {train.query_of(row)!r} has a grade of {train.labels[row]:g}"
                raise InputError(
                    f"{shown}, which the loss {self.loss.name} refuses: {reason}", path=self.config.features
                )

    def _refusal(self, grades: NDArray[np.float32]) -> str:
        """Return why the loss refuses lists of one document with these grades; "" when it takes them."""
        import torch

        labels = self._as_labels(torch.from_numpy(grades[:, None]).to(self.device))
        try:
            with torch.no_grad():
                self.loss(torch.zeros_like(labels), labels)
        except ValueError as error:
            return str(error).removeprefix(f"labels[0, 0] is {labels[0, 0].item():g}: ")
        return ""

    def _as_labels(self, grades: Tensor) -> Tensor:
        """Return grades as the loss takes them."""
        return grades / self.max_grade if self.loss.kind == "probability" else grades

    def prepare(self) -> None:
        """Nothing is left to be made."""

    # --- a step ---------------------------------------------------------------------------------------------------

    def steps(self, first: int, total: int) -> Iterator[list[int]]:
        """Yield the training lists of each step; the seed and the epoch decide their order."""
        for epoch in range(first // self.steps_per_epoch, math.ceil(total / self.steps_per_epoch)):
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.features)).tolist()
            for step in range(self.steps_per_epoch):
                if first <= epoch * self.steps_per_epoch + step < total:
                    yield order[step * self.lists_per_step : (step + 1) * self.lists_per_step]

    def gradient(self, step: Sequence[int]) -> float:
        """Add the gradient of the mean loss over the lists of a step."""
        import torch

        from rankers.lists import pad, valid_entries

        where = valid_entries([len(self.features[place]) for place in step])
        features, labels = (
            pad(torch.from_numpy(np.concatenate([values[place] for place in step])), where).to(self.device)
            for values in (self.features, self.labels)
        )
        where = where.to(self.device)
        loss = self.loss(self.model(features, where), self._as_labels(labels), where)
        value = float(loss.detach())
        if math.isfinite(value) and loss.requires_grad:
            loss.backward()
        return value

    def names(self, step: Sequence[int]) -> list[str]:
        """Return the query ids of a step."""
        return [self.data.train.query_ids[place] for place in step]

    def size(self, step: Sequence[int]) -> int:
        """Return how many lists a step has."""
        return len(step)

    def causes(self, step: Sequence[int]) -> Mapping[str, int]:
        """Return how many lists of a step have documents of one grade only."""
        same = sum(bool((self.labels[place] == self.labels[place][0]).all()) for place in step)
        return {"lists_of_one_grade": same} if same else {}

    # --- the model ------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train with dropout."""
        self.model.train()
        yield
        self.model.eval()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Score without dropout."""
        is_training = self.model.training
        self.model.eval()
        yield
        self.model.train(is_training)

    def score(self) -> float:
        """Return nDCG@10 on dev."""
        assert self.data.dev is not None
        return means(measure_lists(self.data.dev, score_network(self.model, self.dev), [MEASURE]))[MEASURE]

    def probe(self) -> tuple[str, float, str]:
        """Return the sum of a list's scores."""
        return "a score", float(score_network(self.model, self.features[:1])[0].sum()), self.data.train.query_ids[0]

    def measured(self) -> dict[str, float]:
        """Return nDCG@5 and nDCG@10 on dev in both gains."""
        assert self.data.dev is not None
        return _measured(self.data.dev, score_network(self.model, self.dev))

    def publish(self, folder: Path, scores: Mapping[str, float]) -> None:
        """Publish a folder that `FeatureRanker.load` opens."""
        train = self.data.train
        kind = self.config.scorer
        FeatureRanker(kind, train.numbers, train.names, self.normalisation, self.model, self.architecture).save(folder)


def _grow(config: LtrConfig, *, resume: bool, overwrite: bool) -> LtrResult:
    """Train trees: the run folder of a network without checkpoints, since a few seconds make all of it again."""
    require("lightgbm", "ltr")
    folder = RunFolder(Path(config.out), VERB)
    finished = folder.check(config, resume=resume, overwrite=overwrite)
    if finished is None:
        data = _tree_data(config)
        with locked(folder.path):
            finished = folder.begin(config, {"data": data.fingerprint}, resume=resume, overwrite=overwrite)
            if finished is None:
                return _grown(config, data, folder)
    logger.info("%s is finished (%d trees); nothing to do", config.out, finished["steps"])
    return LtrResult(folder.path, finished["steps"], finished["best_step"], finished["dev"], {})


def _grown(config: LtrConfig, data: LtrData, folder: RunFolder) -> LtrResult:
    normalisation = _fitted(config, data)
    trees, metrics, grown, kept = train_trees(config, data, normalisation)
    folder.write_metrics(metrics)
    ranker = FeatureRanker("lambdamart", data.train.numbers, data.train.names, normalisation, trees, {})
    dev = {}
    if data.dev is not None:
        dev = {f"best_{name}": value for name, value in _measured(data.dev, ranker.score_lists(data.dev)).items()}
    ranker.save(folder.cleared_model())
    folder.write_result(steps=grown, best_step=kept, dev=dev, causes={})
    logger.info("model of %d trees in %s", kept, folder.path / "model")
    return LtrResult(folder.path, grown, kept, dev, {})


def _tested(config: LtrConfig, result: LtrResult) -> LtrResult:
    """Measure the finished model on the test lists, once, and add that to `result.json`."""
    if config.test is None:
        return result
    path = result.out / "result.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    if "test" not in known:
        lists = read_svmlight(config.test)
        known["test"] = _measured(lists, FeatureRanker.load(result.out).score_lists(lists, config.test))
        RunFolder(result.out, VERB).write_result(**known)
    return LtrResult(result.out, result.steps, result.best_step, result.dev, known["test"])
