"""What the doctor asks of a model: samples, prompts and lengths, with tiny models and scores made by hand."""

import copy

import numpy as np
import pytest
from training_runs import settings

from retrieval.doctor_findings import Commands, Examination
from retrieval.doctor_model import (
    Sample,
    auc,
    draw_sample,
    examine_model,
    expected_prompts,
    given_negatives,
    reciprocal_rank,
    shared_words,
)
from retrieval.encoder import Encoder
from retrieval.objective import build_loss
from retrieval.train_config import TrainConfig
from retrieval.training import DualEncoderTask

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLE = Sample(
    ["red fox", "green tree"],
    ["a red fox runs", "the green tree", "blue sea"],
    np.array([0, 1]),
    np.array([[False, True, True], [False, False, True]]),  # the first document is relevant for both
)


@pytest.fixture
def task(tiny_model, tiny_collection, tmp_path):
    """A training on the tiny collection."""

    def make(**changes) -> DualEncoderTask:
        config = TrainConfig.from_dict(settings(tiny_model, tiny_collection, tmp_path / "unused", **changes))
        return DualEncoderTask(config, build_loss(config))

    return make


def look(task: DualEncoderTask) -> Examination:
    exam = Examination("x")
    examine_model(exam, task.encoder, task.batcher, Commands(task.config))
    return exam


def found(exam: Examination) -> dict[str, tuple[str, str]]:
    return {one.name: (one.severity, one.found) for one in exam.diagnoses}


# --- the sample -------------------------------------------------------------------------------------------------------


def test_areas_and_ranks_by_hand():
    scores = np.array([[0.5, 0.9, 0.5], [0.1, 0.2, 0.3]])
    # query 1: behind document 1, tied with document 2; query 2: behind document 2, and document 0 does not count
    assert auc(scores, SAMPLE) == pytest.approx((0 + 0.5 + 0) / 3)
    assert reciprocal_rank(scores, SAMPLE) == pytest.approx((1 / 2.5 + 1 / 2) / 2)
    best = np.array([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0]])
    assert (auc(best, SAMPLE), reciprocal_rank(best, SAMPLE)) == (1.0, 1.0)


def test_words_find_what_they_share():
    words = shared_words(SAMPLE)
    assert words[0, 0] > 0 == words[0, 1] == words[0, 2]
    assert words[1, 1] > 0 == words[1, 0] == words[1, 2]
    assert auc(words, SAMPLE) == 1.0


def test_a_sample_knows_what_is_relevant(task):
    batcher = task(loss="softmax_ce").batcher
    sample = draw_sample(batcher, 30)
    assert len(sample.queries) == 30
    assert len(set(sample.documents)) == len(sample.documents) >= 30
    corpus = batcher.corpus
    number = {text: place for place, text in enumerate(sample.documents)}
    for i, query in enumerate(sample.queries):
        row = next(row for row in batcher.rows if row.query == query)
        relevant = {corpus.text(corpus.row(d)) for d, grade in batcher.judgements[row.query_id].items() if grade > 0}
        assert sample.documents[sample.positive[i]] in relevant
        assert not any(sample.other[i, number[text]] for text in relevant & number.keys())
        assert sample.other[i].sum() == len(sample.documents) - len(relevant & number.keys())
    again = draw_sample(batcher, 30)
    assert again.documents == sample.documents


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_that_words_find_are_no_shuffled_labels(task):
    exam = look(task())
    assert "shuffled_labels" not in found(exam)
    assert exam.figures["auc_words"] > 0.9
    assert exam.unchecked == []


def test_positives_of_other_queries_are_shuffled_labels(task):
    one = task()
    rows = one.batcher.rows
    for row, other in zip(rows, [*rows[17:], *rows[:17]], strict=True):
        object.__setattr__(row, "query", f"{other.query} ")
    severity, told = found(look(one))["shuffled_labels"]
    assert severity == "problem"
    assert told.startswith("a positive beats a random document in ")


def test_a_model_of_equal_vectors_has_collapsed_and_one_of_nan_overflows(task):
    import torch

    one = task()
    with torch.no_grad():
        norm = one.encoder.model[0].auto_model.encoder.layer[-1].output.LayerNorm
        norm.weight.mul_(0.01)
        norm.bias.add_(1)
    severity, told = found(look(one))["collapsed_model"]
    assert severity == "problem"
    assert "mean cosine of different texts is" in told
    with torch.no_grad():
        norm.bias.fill_(float("nan"))
    exam = look(one)
    assert [diagnosis.name for diagnosis in exam.problems] == ["overflow"]
    assert "get a vector that is not finite" in exam.problems[0].found


def test_given_negatives_above_the_positive_are_counted(task):
    one = task()
    exam = Examination("x")
    given_negatives(exam, one.encoder, one.batcher, Commands(one.config))
    share = exam.figures["negatives_above"]
    row = one.batcher.rows[0]
    assert len(row.negative_ids) == 1  # the tiny collection's rows have one each, a neighbour's document
    corpus = one.batcher.corpus
    higher = []
    for row in one.batcher.rows:
        query = one.encoder.encode_query([row.query])[0]
        texts = [row.positive_texts(corpus)[0], row.negative_texts(corpus)[0]]
        positive, negative = one.encoder.encode_document(texts) @ query
        higher.append(negative > positive)
    assert share == pytest.approx(np.mean(higher))
    assert ("false_negatives" in found(exam)) == (share > 0.2)


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(tiny_model):
    return Encoder.load(tiny_model, device="cpu", precision="fp32")


INSTRUCTION = "Represent this sentence for searching relevant passages: "


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/models/intfloat/e5-small-v2", ("query: ", "passage: ", True)),
        ("intfloat/multilingual-e5-base", ("query: ", "passage: ", True)),
        ("BAAI/bge-small-en-v1.5", (INSTRUCTION, "", False)),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", (INSTRUCTION, "", True)),
        ("nomic-ai/nomic-embed-text-v1.5", ("search_query: ", "search_document: ", True)),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", None),
        ("/models/e5-mistral-7b", None),
        ("/models/made-e5-myself", None),
        ("sentence-transformers/all-MiniLM-L6-v2", None),
    ],
)
def test_prompts_that_a_name_stands_for(encoder, source, expected):
    encoder.source = source
    assert expected_prompts(encoder) == (expected and (expected, "its model card"))


def test_a_models_own_prompts_win(encoder):
    encoder.source = "intfloat/e5-small-v2"
    encoder.model.prompts = {"query": "ask: ", "passage": "text: ", "document": ""}
    assert expected_prompts(encoder) == (("ask: ", "text: ", True), "the model's own configuration")


@pytest.mark.parametrize(("name", "severity"), [("intfloat/e5-small-v2", "problem"), ("BAAI/bge-small-en", "remark")])
def test_a_family_that_gets_no_prompt(task, name, severity):
    one = task()
    one.encoder.source = name
    assert found(look(one))["wrong_prompt"][0] == severity


def test_prompts_other_than_the_models_are_a_problem(task):
    one = task(query_prompt="passage: ", document_prompt="query: ")
    one.encoder.model.prompts = {"query": "query: ", "document": "passage: "}
    exam = look(one)
    assert found(exam)["wrong_prompt"] == (
        "problem",
        "every query gets 'passage: ' and not 'query: ' and every document gets 'query: ' and not 'passage: ', "
        "which the model's own configuration says",
    )
    [command] = [one.command for one in exam.problems if one.name == "wrong_prompt"]
    assert command.endswith("--query-prompt 'query: ' --document-prompt 'passage: '")
    right = task(query_prompt="query: ", document_prompt="passage: ")
    right.encoder.model.prompts = {"query": "query: ", "document": "passage: "}
    assert not {"wrong_prompt", "unknown_prompt"} & found(look(right)).keys()


def test_a_prompt_that_nobody_asked_for_is_measured(task):
    exam = look(task(query_prompt="tell me all about the "))
    names = {"wrong_prompt", "unknown_prompt"} & found(exam).keys()
    assert names == (
        {"wrong_prompt"} if exam.figures["prompt_loss"] > exam.thresholds.prompt_loss else {"unknown_prompt"}
    )
    assert "with prompts 'tell me all about the ' and '' the mean reciprocal rank is" in found(exam)[names.pop()][1]


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_documents_cut_to_their_first_words(task):
    exam = look(task(document_max_length=4))
    severity, told = found(exam)["truncation"]
    assert severity == "problem"
    assert told.startswith("100% of the documents are cut, ")
    assert exam.problems[-1].command.endswith("--document-max-length 64")
    assert exam.figures["document_tokens_read"] == 4
    assert exam.figures["queries_cut"] == 0


def test_texts_that_fit_are_not_cut(task):
    exam = look(task())
    assert "truncation" not in found(exam)
    assert exam.figures["documents_cut"] == exam.figures["queries_cut"] == 0


def test_a_prompt_takes_its_tokens_from_the_text(task):
    plain = look(task(document_max_length=12)).figures["document_tokens_read"]
    prompted = look(task(document_max_length=12, document_prompt="red green ")).figures["document_tokens_read"]
    words = task().encoder.model.tokenizer.tokenize("red green ")
    assert prompted == plain - len(words)


def test_looking_changes_nothing_in_the_model(task):
    one = task(query_max_length=4, document_max_length=6)
    before = copy.deepcopy(one.model.state_dict())
    look(one)
    assert all((before[name] == weight).all() for name, weight in one.model.state_dict().items())
    assert (one.encoder.query.max_length, one.encoder.document.max_length) == (4, 6)
