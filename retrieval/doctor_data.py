"""What `rankwright doctor` asks of the training rows: leaks, labels, duplicates, swapped sides, what a batch compares.

Everything here is read from texts and judgements; no model is asked. Judgements of the splits that are evaluated serve
to find leaks, and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from retrieval.batches import Batcher, Key, positive_documents
from retrieval.doctor_findings import Commands, Examination, Severity
from retrieval.inspect_data import normalised
from retrieval.near_duplicates import jaccard, shingles
from retrieval.rows import TrainingRow
from retrieval.splits import NEAR
from retrieval.steps import steps_per_epoch
from retrieval.train_config import TrainConfig
from retrieval.training_data import TrainingData

if TYPE_CHECKING:
    from rankers.losses import LossSum, RankingLoss

T = TypeVar("T")

_LARGE = 100_000  # documents from which the corpus is not read as a whole
_BATCHES, _ROWS = 3, 256  # that are made to count what a batch compares


def examine_rows(
    exam: Examination,
    config: TrainConfig,
    data: TrainingData,
    batcher: Batcher,
    loss: RankingLoss | LossSum,
    commands: Commands,
) -> None:
    """Look at rows, labels, and the batches that are made of them.

    Args:
        exam: where findings go.
        config: the run's settings.
        data, batcher: what the run reads, and its batches.
        loss: what is minimised.
        commands: what to type next.

    """
    _sides(exam, config, data, commands)
    _leaks(exam, config, data, commands)
    _copies(exam, data, commands)
    _duplicates(exam, batcher.rows, commands)
    _labels(exam, data, batcher, loss, commands)
    _batches(exam, config, batcher, commands)


# --- texts ------------------------------------------------------------------------------------------------------------


def _sides(exam: Examination, config: TrainConfig, data: TrainingData, commands: Commands) -> None:
    """Compare the lengths of the rows' queries and positives with those of the collection's queries and documents."""
    corpus = data.collection.corpus
    rows = spread(data.rows, exam.thresholds.sample)
    asked = median(_words(row.query) for row in rows)
    answers = median(_words(text) for row in rows for text in row.positive_texts(corpus)[:1])
    exam.figures |= {"query_words": asked, "positive_words": answers}
    if asked <= exam.thresholds.longer_queries * max(answers, 1):
        return
    found = f"the rows' queries have {asked:g} words (median) and their positives {answers:g}"
    documents = median(map(_words, corpus.texts(spread(range(len(corpus)), exam.thresholds.sample))))
    own = spread(list(data.collection.queries().values()), exam.thresholds.sample) if data.collection.splits else []
    if config.rows and (not own or median(map(_words, own)) < documents):
        theirs = f", its queries {median(map(_words, own)):g}" if own else ""
        exam.problem(
            "swapped_sides", f"{found}; the collection's documents have {documents:g}{theirs}", commands.data()
        )
    else:
        exam.remark("swapped_sides", found, commands.data())


def _leaks(exam: Examination, config: TrainConfig, data: TrainingData, commands: Commands) -> None:
    """Look for near-equal queries on both sides that also share a relevant document.

    Without the document, near-equal queries are no leak: "symptoms of mumps" and "symptoms of measles" are two.
    """
    collection, family = data.collection, _family(config.train_split)
    asked_about: defaultdict[Key, set[str]] = defaultdict(set)  # document → texts of the queries trained with it
    for row in data.rows:
        for key, _ in positive_documents(row):
            asked_about[key].add(row.query)
    told: list[str] = []
    highest = 0.0
    for split in collection.splits:
        if split == config.train_split or _family(split) == family:
            continue
        qrels, texts = collection.qrels(split), collection.queries(split)
        leaked = 0
        for query_id, text in texts.items():
            relevant = [d for d, grade in qrels[query_id].items() if grade > 0 and d in collection.corpus]
            keys: list[Key] = [
                *relevant,
                *(("text", collection.corpus.text(collection.corpus.row(d))) for d in relevant),
            ]
            leaked += any(_near(text, other) for key in keys for other in asked_about.get(key, ()))
        share = leaked / max(len(texts), 1)
        exam.figures[f"leaked_{split}"] = share
        if leaked:
            told.append(f"{leaked:,} of {len(texts):,} queries of split {split} ({share:.1%})")
            highest = max(highest, share)
    if told:
        severity: Severity = "problem" if highest >= exam.thresholds.leaked else "remark"
        exam.add("leak", severity, f"{' and '.join(told)} are trained on with their relevant document", commands.data())


def _near(first: str, second: str) -> bool:
    """Whether two queries are near-equal, as where a split is carved."""
    return first == second or jaccard(shingles(first, 1), shingles(second, 1)) >= NEAR


def _copies(exam: Examination, data: TrainingData, commands: Commands) -> None:
    """Look for positives that are the query's own text, and for documents that are some query's."""
    corpus = data.collection.corpus
    rows = spread(data.rows, 5 * exam.thresholds.sample)
    copied = sum(normalised(row.query) in map(normalised, row.positive_texts(corpus)[:4]) for row in rows)
    if copied:
        share = copied / len(rows)
        severity: Severity = "problem" if share >= exam.thresholds.positive_is_query else "remark"
        found = f"{copied:,} of {len(rows):,} rows looked at have a positive that is the text of the query"
        exam.add("positive_is_query", severity, found, commands.data())
    if len(corpus) > _LARGE:
        exam.unchecked.append(f"documents that are queries: the corpus has more than {_LARGE:,} documents")
        return
    queries = {normalised(row.query) for row in data.rows} | set(map(normalised, data.dev_queries.values()))
    longest = 2 * max(map(len, queries)) + 10
    same = 0
    for start in range(0, len(corpus), 1024):
        texts = corpus.texts(list(range(start, min(start + 1024, len(corpus)))))
        same += sum(len(text) <= longest and normalised(text) in queries for text in texts)
    if same:
        exam.remark("document_is_query", f"{same:,} documents have the text of a query", commands.data())


def _duplicates(exam: Examination, rows: Sequence[TrainingRow], commands: Commands) -> None:
    """Count rows whose query was there before under another id, or with the same positives."""
    seen: dict[str, tuple[str, set[Key]]] = {}
    repeated = 0
    for row in rows:
        keys = {key for key, _ in positive_documents(row)}
        query_id, before = seen.setdefault(normalised(row.query), (row.query_id, set()))
        repeated += bool(before) and (query_id != row.query_id or keys <= before)
        before |= keys
    share = repeated / len(rows)
    exam.figures["repeated_rows"] = share
    if share >= exam.thresholds.some_repeated:
        severity: Severity = "problem" if share >= exam.thresholds.repeated_rows else "remark"
        found = f"{repeated:,} of {len(rows):,} rows repeat the query of an earlier one ({share:.0%})"
        exam.add("duplicate_queries", severity, found, commands.data())


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels(
    exam: Examination, data: TrainingData, batcher: Batcher, loss: RankingLoss | LossSum, commands: Commands
) -> None:
    rows = batcher.rows
    if batcher.dropped:
        found = f"{batcher.dropped:,} of {batcher.dropped + len(rows):,} rows have no positive of grade {batcher.rule}"
        exam.remark("rows_left_out", found, commands.data())
    taught = loss.kind == "teacher"
    judged = [row for row in rows if (row.negative_scores if taught else row.negative_labels)]
    same = sum(_is_same(row, taught=taught) for row in judged)
    if judged and same / len(judged) >= exam.thresholds.same_labels:
        what = (
            "teacher's scores are all equal" if taught else "negatives have the label of the best positive, or a higher"
        )
        exam.problem(
            "same_labels", f"of {len(judged):,} rows with labelled negatives, the {what} in {same:,}", commands.data()
        )
    grades = Counter(grade for known in data.judgements.values() for grade in known.values() if grade > 0)
    if loss.kind == "binary" and len(grades) > 1:
        found = f"{len(grades)} grades above 0 among the labels, and {loss.name} has one"
        exam.remark("lost_grades", found, commands.train("--loss", "softmax_ce", "--num-positives", "4"))
    elif loss.kind == "grade" and len(grades) == 1 and not judged:
        exam.remark("single_grade", f"all labels are {min(grades):g}", commands.train("--loss", "infonce"))


def _is_same(row: TrainingRow, *, taught: bool) -> bool:
    """Whether nothing in the labels tells a row's positives from its negatives."""
    if taught:
        scores = [*row.positive_scores, *row.negative_scores]
        return max(scores) - min(scores) < 1e-6
    return max(row.negative_labels) >= max(row.positive_labels or (1.0,))


# --- batches ----------------------------------------------------------------------------------------------------------


def _batches(exam: Examination, config: TrainConfig, batcher: Batcher, commands: Commands) -> None:
    """Make some batches as the training does and count what each row compares."""
    limits = exam.thresholds
    first = Counter(key for row in batcher.rows for key, _ in positive_documents(row)[:1])
    [(_, most)] = first.most_common(1)
    share = most / len(batcher.rows)
    negatives, masked = compared(batcher)
    exam.figures |= {"negatives_per_query": negatives, "masked_share": masked, "commonest_positive": share}
    told = f"a query has {negatives:.1f} negatives in a batch"
    if len(batcher.rows) > 1 and share >= limits.one_document:
        told = f"{most:,} of {len(batcher.rows):,} rows have the same positive; {told}"
        exam.problem("one_class", told, commands.data())
    elif negatives < limits.negatives_per_query:
        exam.problem("one_class", told, commands.train("--per-device-train-batch-size", "32"))
    elif negatives < limits.few_negatives:
        exam.remark("few_negatives", told, commands.train("--per-device-train-batch-size", "32"))
    if masked >= limits.masked and not batcher.rule.teacher:
        exam.remark("masked", f"{masked:.0%} of a batch's cells are masked", commands.train("--num-positives", "1"))
    steps = config.total_steps(steps_per_epoch(batcher, config.gradient_accumulation_steps))
    exam.figures["steps"] = steps
    if steps < limits.few_steps:
        exam.remark("few_steps", f"{steps} steps", commands.train("--num-train-epochs", "3"))


def compared(batcher: Batcher) -> tuple[float, float]:
    """Return the mean number of comparable documents beside the positives of a row, and the share of masked cells."""
    negatives: list[float] = []
    masked: list[float] = []
    for numbers in batcher.epoch(0)[:_BATCHES]:
        batch = batcher.make(numbers[:_ROWS].tolist(), 0)
        where = batch.where
        others = where.sum(axis=1) - 1 if batcher.rule.teacher else (where & (batch.labels <= 0)).sum(axis=1)
        negatives += others.tolist()
        masked.append(1 - float(where.mean()))
    return float(np.mean(negatives)), float(np.mean(masked))


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return at most `count` values at equal distances, so that an order by topic does not matter."""
    places = np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)
    return [values[place] for place in dict.fromkeys(places.tolist())]


def _words(text: str) -> int:
    return len(text.split())


def _family(split: str) -> str:
    """Return the first word of a split's name: test and test_small are two views of one."""
    return re.split(r"[._-]", split)[0]
