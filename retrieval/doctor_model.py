"""What `rankwright doctor` asks of the model: a sample of rows is embedded as the training will embed it.

The sample's queries are scored against its positives and as many documents drawn from the corpus. Sound pairs stand far
above random ones, under the model or at least by their words; prompts and lengths are judged by what they do to that.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.batches import Batcher, Key, positive_documents, positive_grades
from retrieval.doctor_data import spread
from retrieval.doctor_findings import Commands, Examination, Severity
from retrieval.embedding_health import collapsed, health
from retrieval.encoder import Encoder, Side
from retrieval.rows import TrainingRow

_LONGEST = 512  # tokens that a model which takes more is compared with
_UNCUT = 1_000_000  # tokens: no text is cut


class KnownPrompts(NamedTuple):
    """What a family of models was trained with, and whether its vectors need it."""

    query: str
    document: str
    needed: bool = True


_INSTRUCTION = "Represent this sentence for searching relevant passages: "
# By a part of the model's name, from the model cards; a model whose own configuration has prompts needs no entry.
KNOWN_PROMPTS: Mapping[str, KnownPrompts] = {
    r"\be5-(small|base|large)": KnownPrompts("query: ", "passage: "),
    r"\bbge-(small|base|large)-en\b": KnownPrompts(_INSTRUCTION, "", needed=False),
    r"\bmxbai-embed-large": KnownPrompts(_INSTRUCTION, ""),
    r"\bsnowflake-arctic-embed-(xs|s|m|l)\b(?!-v2)": KnownPrompts(_INSTRUCTION, ""),
    r"\bnomic-embed-text": KnownPrompts("search_query: ", "search_document: "),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """Some training rows, each with one of its positives, and other documents.

    Attributes:
        queries: (n,) texts.
        documents: the positives of the rows, then documents of the corpus; texts are distinct.
        positive: (n,) int64, the place of each row's positive.
        other: (n, documents) bool, documents that are not known to be relevant for the query.

    """

    queries: list[str]
    documents: list[str]
    positive: NDArray[np.int64]
    other: NDArray[np.bool_]


def draw_sample(batcher: Batcher, size: int) -> Sample:
    """Take rows and further documents at equal distances, so that the same data gives the same sample."""
    rows: list[TrainingRow] = spread(batcher.rows, size)
    corpus = batcher.corpus
    keys: dict[str, set[Key]] = {}  # text → the names that it goes by
    positive: list[str] = []
    for row in rows:
        graded = zip(positive_documents(row), positive_grades(row), strict=True)
        key, text = next(document for document, grade in graded if grade >= batcher.rule.positive_from)
        text = corpus.text(corpus.row(str(key))) if text is None else text
        keys.setdefault(text, set()).add(key)
        positive.append(text)
    places = spread(range(len(corpus)), size)
    for place, text in zip(places, corpus.texts(places), strict=True):
        keys.setdefault(text, set()).add(corpus.ids[place])
    documents = list(keys)
    number = {text: place for place, text in enumerate(documents)}
    other = np.ones((len(rows), len(documents)), dtype=np.bool_)
    for i, row in enumerate(rows):
        relevant = {key for key, grade in batcher.judgements.get(row.query_id, {}).items() if grade > 0}
        other[i] = [not keys[text] & relevant and ("text", text) not in relevant for text in documents]
        other[i, number[positive[i]]] = False
    return Sample([row.query for row in rows], documents, np.array([number[text] for text in positive]), other)


def auc(scores: NDArray[np.floating], sample: Sample) -> float:
    """Return the share of (query, other document) pairs in which the positive scores higher; ties count half."""
    own = scores[np.arange(len(scores)), sample.positive][:, None]
    higher = np.where(np.isclose(own, scores, atol=1e-6), 0.5, own > scores)
    return float((higher * sample.other).sum() / max(sample.other.sum(), 1))


def reciprocal_rank(scores: NDArray[np.floating], sample: Sample) -> float:
    """Return the mean of 1 / rank of the positive among the other documents; ties count half."""
    own = scores[np.arange(len(scores)), sample.positive][:, None]
    ahead = np.where(np.isclose(own, scores, atol=1e-6), 0.5, scores > own)
    return float((1 / (1 + (ahead * sample.other).sum(axis=1))).mean())


def shared_words(sample: Sample) -> NDArray[np.float64]:
    """Return, for each query and document, the weight of the words that both have: Σ idf / √(words of the document)."""
    documents = [set(re.findall(r"\w+", text.casefold())) for text in sample.documents]
    found = np.zeros((len(sample.queries), len(documents)))
    frequency = Counter(word for words in documents for word in words)
    for i, query in enumerate(sample.queries):
        words = set(re.findall(r"\w+", query.casefold()))
        for j, document in enumerate(documents):
            common = sum(math.log(1 + len(documents) / frequency[word]) for word in words & document)
            found[i, j] = common / math.sqrt(len(document) + 1)
    return found


def examine_model(exam: Examination, encoder: Encoder, batcher: Batcher, commands: Commands) -> None:
    """Embed the sample and say what is wrong with model, prompts, lengths, or with which positives belong to what."""
    _prompts(exam, encoder, commands)
    sample = draw_sample(batcher, exam.thresholds.sample)
    queries, documents = encoder.encode_query(sample.queries), encoder.encode_document(sample.documents)
    if not (np.isfinite(queries).all() and np.isfinite(documents).all()):
        bad = int((~np.isfinite(np.concatenate([queries, documents]))).any(axis=1).sum())
        found = f"{bad} of {len(queries) + len(documents)} texts get a vector that is not finite"
        exam.problem("overflow", found, commands.train("--model", "ANOTHER_MODEL", "--precision", "fp32"))
        return
    if len(documents) > 1 and (reason := collapsed(health(documents))) is not None:
        exam.problem("collapsed_model", reason, commands.train("--model", "ANOTHER_MODEL"))
    scores = queries @ documents.T
    _pairs(exam, scores, sample, commands)
    rank = reciprocal_rank(scores, sample)
    exam.figures["reciprocal_rank"] = rank
    _unknown_prompts(exam, encoder, sample, rank, commands)
    _lengths(exam, encoder, sample, rank, commands)


def _pairs(exam: Examination, scores: NDArray[np.floating], sample: Sample, commands: Commands) -> None:
    """Tell positives that belong to their queries from shuffled ones, which neither words nor vectors find."""
    if not sample.other.any():
        exam.unchecked.append("whether positives belong to their queries: the sample has no other documents")
        return
    by_model, by_words = auc(scores, sample), auc(shared_words(sample), sample)
    exam.figures |= {"auc_model": by_model, "auc_words": by_words}
    found = f"a positive beats a random document in {by_model:.0%} of all cases by the model, {by_words:.0%} by words"
    if max(by_model, by_words) < exam.thresholds.auc:
        exam.problem("shuffled_labels", found, commands.data())
    elif by_model < exam.thresholds.auc:
        exam.remark("unfit_model", found, commands.train("--model", "ANOTHER_MODEL"))


# --- prompts ----------------------------------------------------------------------------------------------------------


def _prompts(exam: Examination, encoder: Encoder, commands: Commands) -> None:
    """Compare the prompts in use with those that the model was trained with, where these are known."""
    wanted = expected_prompts(encoder)
    if wanted is None:
        return
    known, source = wanted
    sides = (("query", encoder.query, known.query), ("document", encoder.document, known.document))
    wrong = [(name, side.prompt, prompt) for name, side, prompt in sides if side.prompt.strip() != prompt.strip()]
    if wrong:
        told = " and ".join(f"every {name} gets {got!r} and not {prompt!r}" for name, got, prompt in wrong)
        flags = [word for name, _, prompt in wrong for word in (f"--{name}-prompt", prompt)]
        severity: Severity = "problem" if known.needed else "remark"
        exam.add("wrong_prompt", severity, f"{told}, which {source} says", commands.train(*flags))


def expected_prompts(encoder: Encoder) -> tuple[KnownPrompts, str] | None:
    """Return the prompts that a model was trained with, and who says so; None where nobody does."""
    prompts: Mapping[str, str | None] = encoder.model.prompts
    query = prompts.get("query") or ""
    document = next(filter(None, map(prompts.get, ("document", "passage", "corpus"))), "")
    if query or document:
        return KnownPrompts(query, document or ""), "the model's own configuration"
    config: Any = getattr(getattr(encoder.model[0], "auto_model", None), "config", None)
    names = f"{encoder.source} {getattr(config, '_name_or_path', '')}".casefold()
    known = next((known for pattern, known in KNOWN_PROMPTS.items() if re.search(pattern, names)), None)
    return None if known is None else (known, "its model card")


def _unknown_prompts(exam: Examination, encoder: Encoder, sample: Sample, rank: float, commands: Commands) -> None:
    """Measure what a prompt does to a model that is not known to have one."""
    prompts = encoder.query.prompt, encoder.document.prompt
    if expected_prompts(encoder) is not None or not any(prompts):
        return
    plain = reciprocal_rank(
        _scores(encoder, sample, Side("", encoder.query.max_length), Side("", encoder.document.max_length)), sample
    )
    told = f"with prompts {prompts[0]!r} and {prompts[1]!r} the mean reciprocal rank is {rank:.3f}, without {plain:.3f}"
    exam.figures["prompt_loss"] = 1 - rank / max(plain, 1e-9)
    better = commands.train("--query-prompt", "", "--document-prompt", "")
    if rank < (1 - exam.thresholds.prompt_loss) * plain:
        exam.problem("wrong_prompt", told, better)
    else:
        exam.remark("unknown_prompt", told, better)


# --- lengths ----------------------------------------------------------------------------------------------------------


def _lengths(exam: Examination, encoder: Encoder, sample: Sample, rank: float, commands: Commands) -> None:
    """Measure how much of the texts is read, and what more tokens would change."""
    limits = exam.thresholds
    sides = (
        ("query", "queries", encoder.query, sample.queries),
        ("document", "documents", encoder.document, sample.documents),
    )
    longer: dict[str, int] = {}
    told: list[str] = []
    is_short = False
    for name, several, side, texts in sides:
        uncut = np.array([len(ids) for ids in encoder.tokenize(texts, Side("", _UNCUT))])
        empty, prompt = encoder.tokenize(["", side.prompt], Side("", _UNCUT))
        room = (side.max_length or _UNCUT) - (len(prompt) - len(empty))
        read = np.minimum(uncut, max(room, 1))
        cut = float((read < uncut).mean())
        exam.figures |= {f"{several}_cut": cut, f"{name}_tokens_read": float(np.median(read))}
        if cut <= limits.cut or (side.max_length or _UNCUT) >= _own_length(encoder):
            continue
        longer[name] = _own_length(encoder)
        told.append(f"{cut:.0%} of the {several} are cut, {np.median(read / uncut):.0%} of the median one is read")
        if name == "document":
            is_short |= cut > limits.mostly_cut and float(np.median(read)) < limits.document_tokens
        else:
            is_short |= float(np.median(read / uncut)) < limits.query_tokens
    if not told:
        return
    query, document = encoder.query, encoder.document
    whole = reciprocal_rank(
        _scores(
            encoder,
            sample,
            Side(query.prompt, longer.get("query", query.max_length)),
            Side(document.prompt, longer.get("document", document.max_length)),
        ),
        sample,
    )
    exam.figures["truncation_loss"] = 1 - rank / max(whole, 1e-9)
    found = f"{' and '.join(told)}; the mean reciprocal rank is {rank:.3f}, and {whole:.3f} at the model's own lengths"
    flags = [word for name, length in longer.items() for word in (f"--{name}-max-length", str(length))]
    if is_short or rank < (1 - limits.truncation_loss) * whole:
        exam.problem("truncation", found, commands.train(*flags))
    elif rank < whole:
        exam.remark("truncation", found, commands.train(*flags))


def _own_length(encoder: Encoder) -> int:
    own = encoder.model.max_seq_length
    return int(min(own, _LONGEST)) if own is not None else _LONGEST


def _scores(encoder: Encoder, sample: Sample, query: Side, document: Side) -> NDArray[np.float32]:
    """Return the scores of the sample with other prompts and lengths."""
    other = Encoder(
        encoder.model,
        source=encoder.source,
        query=query,
        document=document,
        precision=encoder.precision,
        batch_tokens=encoder.batch_tokens,
    )
    scores: NDArray[np.float32] = other.encode_query(sample.queries) @ other.encode_document(sample.documents).T
    return scores


def given_negatives(exam: Examination, encoder: Encoder, batcher: Batcher, commands: Commands) -> None:
    """Count the given negatives that score above their row's first positive under the start model."""
    kept = [row for row in batcher.rows if row.negative_ids or row.negatives]
    if not kept:
        return
    kept = spread(kept, exam.thresholds.sample // 2)
    queries = encoder.encode_query([row.query for row in kept])
    positives = encoder.encode_document([row.positive_texts(batcher.corpus)[0] for row in kept])
    first = [row.negative_texts(batcher.corpus)[:3] for row in kept]
    negatives = encoder.encode_document([text for texts in first for text in texts])
    of = np.repeat(np.arange(len(kept)), list(map(len, first)))
    higher = np.einsum("ij,ij->i", queries[of], negatives) > np.einsum("ij,ij->i", queries, positives)[of]
    share = float(higher.mean())
    exam.figures["negatives_above"] = share
    if share > exam.thresholds.negatives_above:
        exam.remark("false_negatives", f"{share:.0%} of the given negatives score above the positive", commands.audit())
