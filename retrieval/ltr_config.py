"""Settings of a training run of a feature ranker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from retrieval.errors import InputError, did_you_mean
from retrieval.feature_normalisation import KINDS, MISSING
from retrieval.loop_config import LoopConfig

if TYPE_CHECKING:
    from rankers.losses import LossSum, RankingLoss

SCORERS = ("linear", "mlp", "context", "lambdamart")
OBJECTIVES = ("lambdarank", "rank_xendcg")  # LightGBM's ranking objectives
# Networks and trees learn at different rates; so much of its own each has where nothing is said.
_DEFAULT_LOSS = {"lambdamart": "lambdarank"}
_DEFAULT_RATE = {"lambdamart": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class LtrConfig(LoopConfig):
    """Settings of one feature ranker, beside those that every training has.

    Scores of features are not bounded as cosines are, so every loss divides by a temperature of 1 here unless the
    settings say otherwise. With scorer=lambdamart the loss is LightGBM's objective and its only setting is
    `loss.gain` (exp2 or linear); batches, warm-up, decay and clipping do not apply to trees.
    """

    NEEDED: ClassVar[tuple[str, ...]] = ("features", "out")
    LEAST: ClassVar[Mapping[str, float]] = {
        "blocks": 1,
        "heads": 1,
        "feed_forward": 1,
        "dropout": 0,
        "num_trees": 1,
        "num_leaves": 2,
        "min_data_in_leaf": 1,
    }
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "scorer": SCORERS,
        "normalisation": KINDS,
        "missing": MISSING,
    }

    # what is trained on what
    features: str  # SVMlight file of the training lists
    valid: str | None = None  # the same of the dev lists; None: a fifth of the training queries, by hash
    test: str | None = None  # the same of lists that the finished model is measured on
    ids_restart: bool = False  # the files number their queries anew: an id in two files means two queries
    scorer: str = "mlp"  # linear | mlp | context | lambdamart
    normalisation: str = "standard"  # standard | query | none
    missing: str = "mean"  # what a feature is that a line leaves out: mean | zero; mean is a branch of its own in trees
    loss: str = ""  # "": softmax_ce; lambdarank for lambdamart
    learning_rate: float = 0.0  # 0: 1e-3; 0.1 for lambdamart
    num_train_epochs: float = 30.0
    # networks
    hidden_sizes: tuple[int, ...] = (128,)  # units of each hidden layer, of mlp and context
    blocks: int = 2  # self-attention blocks of context
    heads: int = 4  # of each block
    feed_forward: int = 256  # units of each block's inner layer
    dropout: float = 0.1
    # trees
    num_trees: int = 300  # of which the best number on dev is kept
    num_leaves: int = 31  # of each tree
    min_data_in_leaf: int = 20
    feature_fraction: float = 1.0  # share of the features that each tree may use, drawn by the seed
    bagging_fraction: float = 1.0  # share of the documents that each tree is grown from, drawn by the seed

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", self.loss or _DEFAULT_LOSS.get(self.scorer, "softmax_ce"))
        object.__setattr__(self, "learning_rate", self.learning_rate or _DEFAULT_RATE.get(self.scorer, 1e-3))
        LoopConfig.__post_init__(self)  # super() does not know a dataclass with slots
        if any(units < 1 for units in self.hidden_sizes):
            raise InputError(f"hidden_sizes must be numbers >= 1, got {list(self.hidden_sizes)}")
        if self.dropout >= 1:
            raise InputError(f"dropout is a share of units, 0 to below 1; got {self.dropout}")
        for name in ("feature_fraction", "bagging_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is a share above 0, up to 1; got {getattr(self, name)}")
        if self.scorer in ("mlp", "context") and not self.hidden_sizes:
            raise InputError(f"scorer={self.scorer} needs hidden_sizes; scorer=linear has none")
        if self.scorer == "context" and self.hidden_sizes[-1] % self.heads:
            raise InputError(f"heads={self.heads} do not divide {self.hidden_sizes[-1]}, the last of hidden_sizes")
        if self.valid is not None and self.eval_strategy == "no":
            raise InputError("eval_strategy=no validates nothing; leave out valid, or the strategy")
        if self.scorer == "lambdamart":
            self._refuse_what_trees_lack()

    def _refuse_what_trees_lack(self) -> None:
        if self.loss not in OBJECTIVES:
            raise InputError(f"scorer=lambdamart has no loss {self.loss!r}{did_you_mean(self.loss, OBJECTIVES)}")
        for name in self.loss_settings:
            if name != "gain":
                raise InputError(f"unknown setting loss.{name} of lambdamart{did_you_mean(name, ['gain'])}")
        if self.gain not in ("exp2", "linear"):
            raise InputError(f"unknown loss.gain {self.gain!r}; wanted exp2 or linear")

    @property
    def gain(self) -> Any:
        """The gain of a grade in lambdamart's objective."""
        return self.loss_settings.get("gain", "exp2")

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature files."""
        return tuple(path for path in (self.features, self.valid, self.test) if path is not None)

    def architecture(self, features: int) -> dict[str, Any]:
        """Return what `rankers.feature_scorers.FeatureScorer` is built from."""
        hidden = list(self.hidden_sizes) if self.scorer in ("mlp", "context") else []
        shape: dict[str, Any] = {"features": features, "hidden": hidden, "dropout": self.dropout}
        if self.scorer == "context":
            shape |= {"blocks": self.blocks, "heads": self.heads, "feed_forward": self.feed_forward}
        return shape


def build_ltr_loss(config: LtrConfig) -> RankingLoss | LossSum:
    """Build the loss that the settings name, with a temperature of 1 wherever they give none.

    Raises:
        InputError: an unknown loss or setting, or a loss that does not fit lists of documents.

    """
    from retrieval.objective import build_loss

    loss = build_loss(config, bounded=False)
    for term in loss.terms:
        if not term.entry.several_positives:
            raise InputError(f"loss: {term.name} takes one relevant document in a list; softmax_ce takes several")
        if term.keeps_state:
            raise InputError(f"loss: {term.name} keeps a state of each query; take another loss for feature lists")
    return loss
