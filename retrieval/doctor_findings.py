"""What `rankwright doctor` can find: the causes in the order in which they are told, and the limits that it goes by.

One fault shows in many places: a collapsed model has a flat loss, equal scores and a bad dev score at once. So causes
stand in one order, those that explain others first, and the first problem told is the most probable cause.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from retrieval.embedding_health import COSINE_LIMIT, RANK_LIMIT
from retrieval.train_config import TrainConfig

Severity = Literal["problem", "remark"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where a finding becomes a problem or a remark; chosen on faults made from pydocs, each with its reason.

    Shares are of rows, queries or cells, from 0 to 1.
    """

    # data
    leaked: float = 0.15  # evaluated queries with a twin of theirs in training; "see also" links alone make 0.044
    positive_is_query: float = 0.05  # rows whose positive is the query's own text: copies teach copying
    one_document: float = 0.5  # rows with the same positive: most of a batch has nothing to be told apart from
    negatives_per_query: float = 1.0  # comparable documents beside the positive: below, many rows compare nothing
    few_negatives: float = 4.0  # from here on a remark: a guess is right one time in five
    same_labels: float = 0.5  # rows whose listed negatives have the label of the positive
    repeated_rows: float = 0.2  # rows whose query was there before: a batch of 32 then has six twins
    some_repeated: float = 0.02  # from here on a remark
    longer_queries: float = 2.0  # times the positives' words: where the collection's own queries are the short side
    masked: float = 0.5  # cells of a batch that are not compared
    few_steps: float = 10.0  # optimizer steps of a run
    sample: int = 150  # rows and further documents that the model is asked about
    # the start model on the sample
    auc: float = 0.65  # of positives against random documents: 0.5 is a coin, the narrow collection adi has 0.83
    prompt_loss: float = 0.1  # share of the reciprocal rank that a prompt the model does not know may cost
    truncation_loss: float = 0.15  # the same for reading fewer tokens than the model could
    cut: float = 0.1  # texts that are cut: fewer are left as they are
    mostly_cut: float = 0.5  # documents cut, from which the next limit counts
    document_tokens: float = 16.0  # tokens read of the median document: fewer are not a sentence
    query_tokens: float = 0.5  # share of the tokens read of the median query: half a question is another one
    negatives_above: float = 0.2  # given negatives that score above the positive
    # settings
    gap: float = 0.7  # cosine of the positive minus that of the negatives that training reaches when all goes well
    unreachable: float = 0.75  # share of the chance loss that is left at that gap
    measured_by_gap: float = 0.35  # the same with the loss's own settings: above it a loss does not go by this gap
    sharp: float = 1_000.0  # scale (1 / temperature): a cosine's rounding in bf16 (0.004) is 4 nats
    learning_rate: float = 5e-3  # AdamW moves every weight by about that; a transformer's weights are about 0.05
    static_learning_rate: float = 1.0  # of a table of word vectors, whose entries are larger and seldom touched
    usual_learning_rate: float = 5e-4  # above it a remark
    least_movement: float = 1e-5  # learning rate × steps: less does not change a weight's third digit
    # a run
    flat: float = 0.03  # nearness of the last losses to the chance loss, as a share of it
    still: float = 0.1  # loss fallen by less, as a share of how far it began below the chance loss
    equal_scores: float = 0.01  # standard deviation of a query's cosines: 0.01 and below is noise
    document_cosine: float = COSINE_LIMIT  # mean over pairs of different documents in a batch
    document_rank: float = RANK_LIMIT  # effective rank of a batch's documents
    risen_cosine: float = 0.5  # rise of that mean within a run: a learning rate of 2e-4 makes 0.29 without collapse
    risen: float = 0.25  # rise of the loss, as a share of the chance loss
    doubled: float = 2.0  # last losses over the first, of a loss that is not ln C where it guesses
    exploded: float = 1_000.0  # largest gradient norm over the median one
    worse: float = 0.05  # dev below the start model: more than the noise of some hundred queries
    overfit: float = 0.02  # dev below its best, while the loss has gone on falling
    easy: float = 0.98  # rows right before anything is learned


THRESHOLDS = Thresholds()

# Name → the probable cause; the order is that in which they are told.
CAUSES: Mapping[str, str] = MappingProxyType(
    {
        "learning_rate": "the learning rate throws the weights far away in one step, or moves them by nothing",
        "overflow": "numbers leave what a float can hold: the temperature is too small, or the weights are too large",
        "collapsed_model": "the model gives all texts nearly the same vector, so that nothing can be ranked",
        "one_class": "nothing is left to compare: all rows have the same positive, or a batch has no negatives",
        "swapped_sides": "queries and documents stand in each other's place in the training rows",
        "leak": "queries that will be evaluated are trained on, so that their score says nothing",
        "same_labels": "the labels are all the same, so that relevant and other documents cannot be told apart",
        "shuffled_labels": "positives do not belong to their queries; was one of two columns sorted or shuffled alone?",
        "duplicate_queries": "the same queries stand in the rows again and again: less data than it seems, and twins "
        "with different positives are each other's false negatives",
        "wrong_prompt": "the model was trained with other prompts than it gets, and its vectors are worse for it",
        "truncation": "the texts are cut so short that what answers the query is not read",
        "temperature": "the temperature fights the scale of the scores: good scores leave the loss near chance, "
        "or rounding errors decide it",
        "positive_is_query": "positives are copies of their query; what is learned is to find the same text",
        "diverged": "the loss has grown: the learning rate is too high for this model or loss",
        "collapsed_in_training": "training has drawn all documents together; the learning rate is too high, or the "
        "loss has a trivial minimum",
        "equal_scores": "a query's scores hardly differ, so that their order is noise",
        "flat_loss": "the loss is that of guessing and stays there: nothing is learned",
        "masked": "most cells of a batch are masked, so that few documents are compared",
        "worse_than_start": "training has made the model worse on dev than it was",
        "unfit_model": "the start model does not know these texts: it is no sentence encoder, or of another language",
        "overfit": "dev was best long before the end, while the loss went on falling",
        "easy_negatives": "negatives are told apart before anything is learned; there is little left to learn",
        "false_negatives": "given negatives score above the positives; some of them are probably relevant",
        "few_negatives": "few documents are compared with a positive, so that each step says little",
        "unknown_prompt": "a prompt is given to a model that has none of its own",
        "lost_grades": "labels have several grades, and this loss sees relevant and other alone",
        "single_grade": "this loss is for grades, and the labels have one",
        "rows_left_out": "rows have no positive that this loss accepts",
        "document_is_query": "documents have the text of a query; a search finds the question and not the answer",
        "few_steps": "the run is a handful of steps, which changes little",
        "no_validation": "nothing is validated, so that nobody sees when the model gets worse",
        "unfinished": "the run has not finished: it goes on, was stopped, or failed",
    }
)
_ORDER = {name: place for place, name in enumerate(CAUSES)}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding.

    Attributes:
        name: a key of `CAUSES`.
        severity: a problem makes the training useless or misleading as it is; a remark is worth knowing.
        found: what was measured, with its numbers.
        cause: what probably is behind it.
        command: what to type next.

    """

    name: str
    severity: Severity
    found: str
    cause: str
    command: str


@dataclass(slots=True)
class Examination:
    """What was found, and what could not be looked at.

    Attributes:
        subject: what was examined.
        thresholds: the limits.
        figures: what was measured, by name; for a report that wants numbers.
        unchecked: checks that were left out, each with its reason.

    """

    subject: str
    thresholds: Thresholds = THRESHOLDS
    figures: dict[str, float] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    _found: dict[str, Diagnosis] = field(default_factory=dict)

    def add(self, name: str, severity: Severity, found: str, command: str) -> None:
        """Add a finding; of two with one name the first stays, unless the second alone is a problem."""
        known = self._found.get(name)
        if known is None or (known.severity, severity) == ("remark", "problem"):
            self._found[name] = Diagnosis(name, severity, found, CAUSES[name], command)

    def problem(self, name: str, found: str, command: str) -> None:
        """Add a problem."""
        self.add(name, "problem", found, command)

    def remark(self, name: str, found: str, command: str) -> None:
        """Add a remark."""
        self.add(name, "remark", found, command)

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """All findings, problems first, each in the order of `CAUSES`."""
        return sorted(self._found.values(), key=lambda one: (one.severity != "problem", _ORDER[one.name]))

    @property
    def problems(self) -> list[Diagnosis]:
        """The problems, the most probable cause first."""
        return [one for one in self.diagnoses if one.severity == "problem"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "subject": self.subject,
            "problems": len(self.problems),
            "diagnoses": [asdict(one) for one in self.diagnoses],
            "figures": {name: round(value, 6) for name, value in self.figures.items()},
            "unchecked": self.unchecked,
        }


@dataclass(frozen=True, slots=True)
class Commands:
    """Command lines to type next, with the model, data and rows of the settings that were examined."""

    config: TrainConfig
    run: Path | None = None

    def train(self, *changes: str) -> str:
        """Return the command that trains again with these flags changed."""
        config = self.config
        if self.run is not None:
            pairs = [("--config", str(self.run / "config.yaml")), ("--out", f"{self.run}-2")]
        else:
            rows = [("--rows", path) for path in config.rows]
            pairs = [("--model", config.model), ("--data", config.data), *rows, ("--out", "runs/next")]
        kept = [word for flag, value in pairs if flag not in changes for word in (flag, value)]
        return _joined("train", *kept, *changes)

    def data(self) -> str:
        """Return the command that lists leaks and defects one by one."""
        rows = [word for path in self.config.rows for word in ("--rows", path)]
        return _joined("data", self.config.data, *rows, "--json")

    def mine(self) -> str:
        """Return the command that mines hard negatives."""
        return _joined("mine", *self._source, "--split", self.config.train_split, "--out", "mined.jsonl")

    def audit(self) -> str:
        """Return the command that looks for false negatives among the given ones."""
        rows = self.config.rows[0] if self.config.rows else "mined.jsonl"
        return _joined("audit", rows, "--data", self.config.data, "--out", "runs/audit")

    @property
    def _source(self) -> tuple[str, ...]:
        return "--model", self.config.model, "--data", self.config.data


def _joined(*words: str) -> str:
    return "rankwright " + " ".join(map(shlex.quote, words))
