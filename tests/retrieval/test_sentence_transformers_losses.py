"""Our losses in sentence-transformers' trainers: the value of a hand-built matrix, and two steps of every loss."""

import copy
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval import CrossEncoderLoss, InputError, SentenceTransformerLoss
from retrieval.models import resolve_model

torch = pytest.importorskip("torch", reason="needs the train extra")
library = pytest.importorskip("sentence_transformers", reason="needs the train extra")

from torch import nn  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from rankers.lists import pad_lists  # noqa: E402
from rankers.losses import LOSSES, LossEntry, RankingLoss, build  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["sort", "argsort", "mean", "median", "clip", "unique", "outer", "hypot", "linspace", "take", "cumsum", "where"]


def real_rows():
    """(summary of a function, what its documentation says of its arguments)."""
    found = []
    for name in NAMES:
        paragraphs = inspect.getdoc(getattr(np, name)).split("\n\n")
        summary, *rest = (p for p in paragraphs if not p.startswith(f"{name}("))
        found.append((" ".join(summary.split()), " ".join(rest[0].split())))
    return found


QUERIES, DOCUMENTS = map(list, zip(*real_rows(), strict=True))
NEGATIVES = [DOCUMENTS[(place + 5) % len(DOCUMENTS)] for place in range(len(DOCUMENTS))]


@pytest.fixture(scope="session")
def bert(minilm, tmp_path_factory) -> str:
    """Random weights, 2 layers of 32 dimensions, with the tokenizer of MiniLM."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(minilm))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.1,  # with BERT's 0.02 a model of this size makes all texts one vector
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def loaded(bert):
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = library.SentenceTransformer(modules=[Transformer(bert), Pooling(32)], device="cpu")
        cross_encoder = library.CrossEncoder(bert, num_labels=1, device="cpu")
        with torch.no_grad():  # else all logits of a new head are within 0.1
            cross_encoder.model.classifier.weight.mul_(20)
    return encoder.eval(), cross_encoder.eval()


@pytest.fixture
def encoder(loaded):
    return copy.deepcopy(loaded[0])


@pytest.fixture
def cross_encoder(loaded):
    return copy.deepcopy(loaded[1])


def tokenised(model, *columns):
    return [model.preprocess(list(column)) for column in columns]


def vectors(model, texts):
    return model.encode(list(texts), convert_to_tensor=True, convert_to_numpy=False)


def cosines(model, queries, documents):
    return normalize(vectors(model, queries)) @ normalize(vectors(model, documents)).T


def logits(model, *lists):
    return [
        torch.from_numpy(model.predict([(query, text) for text in texts], activation_fn=nn.Identity()))
        for query, texts in lists
    ]


def close(found, wanted):
    assert found.shape == ()
    torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-4, atol=1e-5)


def taught(scores, labels, *, where=None, reduction="mean"):
    """A teacher's loss that compares no documents: squared error."""
    where = torch.ones_like(labels, dtype=torch.bool) if where is None else where
    return ((scores - labels) ** 2)[where].mean()


def counting(scores, labels, *, where=None, state=None, reduction="mean"):
    """A loss that counts how often it has seen each query."""
    value = (scores * labels).sum()
    return value if state is None else (value * state["seen"].sum(), {"seen": state["seen"] + 1})


def entry_of(fn, **values):
    given = {"use": "tests", "needs": "rows", "cost": "linear", "paper": "none", "defaults": {}, "labels": "binary"}
    return LossEntry(name=fn.__name__, fn=fn, **given | values)


# --- dual encoders: the value ----------------------------------------------------------------------------------------

TEACHERS = [name for name, entry in LOSSES.items() if entry.labels == "teacher"]
SETTINGS = [
    *((name, {}) for name in LOSSES if name not in TEACHERS),
    ("infonce", {"symmetric": True, "temperature": 0.1}),
    ("bixse", {"scale": 5.0}),
    ("sl_at_k", {"k": 2}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_it_is_the_loss_of_the_similarity_matrix(encoder, name, settings):
    columns = QUERIES[:4], DOCUMENTS[:4], DOCUMENTS[4:8], DOCUMENTS[8:12]
    loss = SentenceTransformerLoss(encoder, name, **settings)
    scores = cosines(encoder, columns[0], DOCUMENTS)
    value = loss(tokenised(encoder, *columns), None)
    close(value, build(name, **settings)(scores, torch.eye(4, 12)))
    value.backward()
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_a_built_loss_is_taken_as_it_is(encoder):
    built = build("softmax_ce", temperature=0.3)
    loss = SentenceTransformerLoss(encoder, built)
    assert loss.ranking_loss is built
    columns = tokenised(encoder, QUERIES[:3], DOCUMENTS[:3])
    close(loss(columns, None), built(cosines(encoder, QUERIES[:3], DOCUMENTS[:3]), torch.eye(3)))


def test_the_similarity_is_the_models(encoder):
    encoder.similarity_fn_name = "dot"
    loss = SentenceTransformerLoss(encoder, "infonce", temperature=10)
    scores = vectors(encoder, QUERIES[:3]) @ vectors(encoder, DOCUMENTS[:3]).T
    assert scores.abs().max() > 1.5
    close(loss(tokenised(encoder, QUERIES[:3], DOCUMENTS[:3])), build("infonce", temperature=10)(scores, torch.eye(3)))
    assert loss.get_config_dict()["similarity"] == "dot"


def test_a_duplicate_text_is_no_negative(encoder):
    """Three rows of two documents: the third brings the first again, and the last negative is a positive."""
    documents, negatives = [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0]], [DOCUMENTS[2], DOCUMENTS[3], DOCUMENTS[1]]
    value = SentenceTransformerLoss(encoder, "infonce")(tokenised(encoder, QUERIES[:3], documents, negatives))
    where = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0]]) > 0
    scores = cosines(encoder, QUERIES[:3], documents + negatives)
    close(value, build("infonce")(scores, torch.eye(3, 6), where))
    assert not torch.isclose(value, build("infonce")(scores, torch.eye(3, 6)), rtol=1e-3)


def test_a_query_that_comes_twice_has_both_positives(encoder):
    queries = [QUERIES[0], QUERIES[0], QUERIES[2]]
    scores = cosines(encoder, queries, DOCUMENTS[:3])
    columns = tokenised(encoder, queries, DOCUMENTS[:3])
    both = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    close(SentenceTransformerLoss(encoder, "softmax_ce")(columns), build("softmax_ce")(scores, both))
    where = (both == 0) | (torch.eye(3) == 1)
    where_columns = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]]) > 0  # one row a query: the labelled, or the first
    wanted = build("infonce", symmetric=True)(scores, torch.eye(3), where, where_columns=where_columns)
    close(SentenceTransformerLoss(encoder, "infonce", symmetric=True)(columns), wanted)


def test_a_label_grades_the_document(encoder):
    labels = torch.tensor([1.0, 0.5, 0.0])
    value = SentenceTransformerLoss(encoder, "bixse")(tokenised(encoder, QUERIES[:3], DOCUMENTS[:3]), labels)
    close(value, build("bixse")(cosines(encoder, QUERIES[:3], DOCUMENTS[:3]), labels.diag()))


def test_a_list_grades_all_documents_of_a_row(encoder):
    labels = torch.tensor([[2, 1], [3, 0]])
    columns = tokenised(encoder, QUERIES[:2], DOCUMENTS[:2], DOCUMENTS[2:4])
    value = SentenceTransformerLoss(encoder, "softmax_ce")(columns, labels)
    wanted = torch.tensor([[2.0, 0, 1, 0], [0, 3, 0, 0]])
    close(value, build("softmax_ce")(cosines(encoder, QUERIES[:2], DOCUMENTS[:4]), wanted))


def test_a_teacher_scores_a_rows_own_documents(encoder):
    loss = SentenceTransformerLoss(encoder, RankingLoss(entry_of(taught, labels="teacher", unchanged_by="none")))
    columns = [QUERIES[:2], DOCUMENTS[:2], [DOCUMENTS[2], DOCUMENTS[1]]]  # row 2 brings a text twice
    scores = cosines(encoder, QUERIES[:2], DOCUMENTS[:3])
    labels = torch.tensor([[2.0, -1.0], [0.5, 0.5]])
    errors = torch.stack([scores[0, 0] - 2, scores[0, 2] + 1, scores[1, 1] - 0.5])
    close(loss(tokenised(encoder, *columns), labels), (errors**2).mean())
    close(loss(tokenised(encoder, *columns[:2]), labels[:, 0]), ((scores.diag() - labels[:, 0]) ** 2).mean())


@pytest.mark.parametrize("name", TEACHERS)
def test_every_loss_of_a_teacher_sees_each_rows_own_documents(name, encoder):
    columns, labels = (QUERIES[:3], DOCUMENTS[:3], DOCUMENTS[3:6]), torch.tensor([[4.5, -1], [2, 3], [0, -2]])
    scores = cosines(encoder, columns[0], DOCUMENTS[:6])
    own = torch.stack([scores.diag(), scores[:, 3:].diag()], dim=1)
    close(SentenceTransformerLoss(encoder, name)(tokenised(encoder, *columns), labels), build(name)(own, labels))


def test_labels_that_do_not_fit_are_refused(encoder):
    columns = tokenised(encoder, QUERIES[:2], DOCUMENTS[:2])
    teacher = SentenceTransformerLoss(encoder, RankingLoss(entry_of(taught, labels="teacher")))
    with pytest.raises(InputError, match="taught needs a column label: a teacher's scores, a list of 1 per row"):
        teacher(columns)
    with pytest.raises(InputError, match="taught compares a row's own documents, and each row has one"):
        teacher(columns, torch.ones(2))
    with pytest.raises(InputError, match="takes a number, or a list of 1, per row as labels, got 2 per row"):
        SentenceTransformerLoss(encoder, "infonce")(columns, torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 0.7: binary labels are 0/1 or grades"):
        SentenceTransformerLoss(encoder, "infonce")(columns, torch.tensor([0.7, 1]))
    with pytest.raises(InputError, match=r"takes text columns \(query, document, …\), got 1"):
        SentenceTransformerLoss(encoder, "infonce")(columns[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_similarities_are_in_full_precision(encoder, dtype):
    encoder.to(dtype)
    columns = tokenised(encoder, QUERIES[:4], DOCUMENTS[:4])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = SentenceTransformerLoss(encoder, "infonce")(columns)
        embeddings = [encoder(dict(column))["sentence_embedding"] for column in columns]
    assert embeddings[0].dtype == dtype
    lifted = torch.float32 if dtype == torch.bfloat16 else dtype
    queries, documents = (normalize(vector.to(lifted)) for vector in embeddings)
    assert value.dtype == lifted
    assert torch.isclose(value, build("infonce")(queries @ documents.T, torch.eye(4)), rtol=1e-6)


def test_the_texts_are_read_before_the_model_changes_its_input(encoder):
    class Careless(nn.Module):
        def forward(self, features):
            made = encoder(dict(features))
            features["attention_mask"].zero_()
            return made

    columns = tokenised(encoder, QUERIES[:2], DOCUMENTS[:2])
    loss = SentenceTransformerLoss(encoder, "infonce")
    wanted = loss([dict(column) for column in columns])
    loss.model = Careless()
    close(loss(columns), wanted)
    assert not columns[0]["attention_mask"].any()


def test_it_can_be_wrapped_by_losses_of_the_library(encoder):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

    wrapped = MatryoshkaLoss(encoder, SentenceTransformerLoss(encoder, "infonce"), [32, 8])
    queries, documents = vectors(encoder, QUERIES[:3]), vectors(encoder, DOCUMENTS[:3])
    cut = [normalize(queries[:, :dim]) @ normalize(documents[:, :dim]).T for dim in (32, 8)]
    wanted = sum(build("infonce")(scores, torch.eye(3)) for scores in cut)
    close(wrapped(tokenised(encoder, QUERIES[:3], DOCUMENTS[:3]), None), wanted)


def test_inputs_that_are_no_text_are_all_distinct(encoder):
    vector = torch.randn(3, 32)

    class Given(nn.Module):
        def forward(self, features):
            return features

    loss = SentenceTransformerLoss(encoder, "infonce")
    loss.model = Given()
    wanted = build("infonce")(normalize(vector) @ normalize(vector).T, torch.eye(3))
    close(loss([{"sentence_embedding": vector}, {"sentence_embedding": vector}]), wanted)


def test_a_state_follows_the_text_of_a_query(encoder):
    loss = SentenceTransformerLoss(encoder, RankingLoss(entry_of(counting, state={"seen": 1.0})))

    def seen(*queries):
        texts = [QUERIES[query] for query in queries]
        sums = cosines(encoder, texts, [DOCUMENTS[query] for query in queries]).diag().sum()
        value = loss(tokenised(encoder, texts, [DOCUMENTS[query] for query in queries]))
        return round(float((value / sums).detach()), 3)

    assert seen(0, 1) == 2  # first values
    assert seen(1, 2) == 3
    with torch.no_grad():
        assert seen(0, 1, 2) == seen(0, 1, 2) == 7  # evaluation counts for nothing
    assert seen(0) == 2


def test_an_estimated_threshold_is_each_querys_own(encoder):
    loss = SentenceTransformerLoss(encoder, "sl_at_k", k=1, quantile="estimated", beta_rate=0.5)
    columns = QUERIES[:3], DOCUMENTS[:3]
    scores, labels = cosines(encoder, *columns), torch.eye(3)
    state = {"beta": torch.zeros(3)}
    for _ in range(3):
        wanted, state = loss.ranking_loss(scores, labels, state=state)
        close(loss(tokenised(encoder, *columns)), wanted)
    assert state["beta"].abs().min() > 0


# --- cross-encoders: the value ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), [case for case in SETTINGS if "symmetric" not in case[1]])
def test_it_is_the_loss_of_the_padded_logits_at_temperature_one(cross_encoder, name, settings):
    lists = [(QUERIES[0], DOCUMENTS[:3]), (QUERIES[1], DOCUMENTS[1:2]), (QUERIES[2], DOCUMENTS[4:6])]
    labels = [[1, 0, 0], [1], [0, 1]]
    loss = CrossEncoderLoss(cross_encoder, name, **settings)
    value = loss([[query for query, _ in lists], [texts for _, texts in lists]], [torch.tensor(row) for row in labels])
    warm = settings if "scale" in settings else {"temperature": 1.0, **settings}
    close(value, build(name, **warm)(*pad_lists(logits(cross_encoder, *lists), labels)))


@pytest.mark.parametrize("mini_batch_size", [None, 1, 4, 100])
def test_pairs_go_through_the_model_a_few_at_a_time(cross_encoder, mini_batch_size):
    inputs = [QUERIES[:3], [DOCUMENTS[:4], [], DOCUMENTS[4:6]]]
    labels = [torch.tensor([1, 0, 0, 0]), torch.tensor([]), torch.tensor([0, 1])]
    sizes, forward = [], cross_encoder.forward

    def counted(features, **more):
        sizes.append(len(features["input_ids"]))
        return forward(features, **more)

    scores = logits(cross_encoder, (QUERIES[0], DOCUMENTS[:4]), (QUERIES[2], DOCUMENTS[4:6]))
    cross_encoder.forward = counted
    value = CrossEncoderLoss(cross_encoder, "infonce", mini_batch_size=mini_batch_size)(inputs, labels)
    assert sizes == {None: [3, 3], 1: [1] * 6, 4: [4, 2], 100: [6]}[mini_batch_size]
    close(value, build("infonce", temperature=1)(*pad_lists([*scores, []], [[1, 0, 0, 0], [0, 1], []])))
    value.backward()
    gradients = [parameter.grad for parameter in cross_encoder.parameters() if parameter.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_temperature_is_the_users_if_given(cross_encoder):
    assert CrossEncoderLoss(cross_encoder, "infonce").ranking_loss.settings["temperature"] == 1
    assert CrossEncoderLoss(cross_encoder, "infonce", temperature=0.2).ranking_loss.settings["temperature"] == 0.2
    scaled = CrossEncoderLoss(cross_encoder, "infonce", scale=3.0).ranking_loss.settings
    assert (scaled["scale"], "temperature" in scaled) == (3.0, False)
    assert CrossEncoderLoss(cross_encoder, build("infonce")).ranking_loss.settings["temperature"] == 0.05
    assert "scale" not in CrossEncoderLoss(cross_encoder, "bixse").ranking_loss.settings


def test_columns_are_each_rows_list(cross_encoder):
    columns = [QUERIES[:2], DOCUMENTS[:2], [DOCUMENTS[5], DOCUMENTS[1]], DOCUMENTS[6:8]]  # row 2 brings a text twice
    lists = (QUERIES[0], [DOCUMENTS[i] for i in (0, 5, 6)]), (QUERIES[1], [DOCUMENTS[i] for i in (1, 7)])
    scores = logits(cross_encoder, *lists)
    value = CrossEncoderLoss(cross_encoder, "infonce")(columns)
    close(value, build("infonce", temperature=1)(*pad_lists(scores, [[1, 0, 0], [1, 0]])))
    graded = CrossEncoderLoss(cross_encoder, "softmax_ce")(columns, [torch.tensor([3, 1, 0]), torch.tensor([2, 2, 1])])
    close(graded, build("softmax_ce", temperature=1)(*pad_lists(scores, [[3, 1, 0], [2, 1]])))


def test_pairs_with_a_label(cross_encoder):
    value = CrossEncoderLoss(cross_encoder, "bixse")([QUERIES[:2], DOCUMENTS[:2]], torch.tensor([1.0, 0.5]))
    scores = logits(cross_encoder, (QUERIES[0], DOCUMENTS[:1]), (QUERIES[1], DOCUMENTS[1:2]))
    close(value, build("bixse", temperature=1)(*pad_lists(scores, [[1.0], [0.5]])))


def test_a_prompt_goes_before_the_pair(cross_encoder):
    inputs, labels = [QUERIES[:1], [DOCUMENTS[:2]]], [torch.tensor([1, 0])]
    loss = CrossEncoderLoss(cross_encoder, "infonce")
    plain, prompted = loss(inputs, labels), loss(inputs, labels, prompt="find: ", task=None)
    scores = cross_encoder.predict(
        [(QUERIES[0], text) for text in DOCUMENTS[:2]], prompt="find: ", activation_fn=nn.Identity()
    )
    close(prompted, build("infonce", temperature=1)(torch.from_numpy(scores)[None], torch.tensor([[1.0, 0.0]])))
    assert plain != prompted


def test_a_cross_encoders_lists_that_do_not_fit(cross_encoder):
    loss = CrossEncoderLoss(cross_encoder, "softmax_ce")
    with pytest.raises(InputError, match="softmax_ce needs a column label: for each query a list"):
        loss([QUERIES[:1], [DOCUMENTS[:2]]])
    with pytest.raises(InputError, match="row 0 of the batch has 2 documents but 3 labels"):
        loss([QUERIES[:1], [DOCUMENTS[:2]]], [torch.ones(3)])
    with pytest.raises(InputError, match="softmax_ce compares a row's own documents, and each row has one"):
        loss([QUERIES[:2], DOCUMENTS[:2]], torch.ones(2))
    with pytest.raises(InputError, match=r"takes columns \(query, documents\) or more, got 1"):
        loss([QUERIES[:2]])
    with pytest.raises(InputError, match="no query of the batch has a document"):
        loss([QUERIES[:1], [[]]], [torch.tensor([])])


# --- making one ------------------------------------------------------------------------------------------------------


def test_impossible_losses_are_refused_when_they_are_made(encoder, cross_encoder):
    for make, model, other in (
        (SentenceTransformerLoss, encoder, cross_encoder),
        (CrossEncoderLoss, cross_encoder, encoder),
    ):
        with pytest.raises(InputError, match=rf"{make.__name__} trains a \w+, got {type(other).__name__}"):
            make(other, "infonce")
        with pytest.raises(ValueError, match="unknown loss 'info_nce'; did you mean 'infonce'"):
            make(model, "info_nce")
        with pytest.raises(ValueError, match="unknown setting 'temprature' of infonce; did you mean 'temperature'"):
            make(model, "infonce", temprature=1)
        with pytest.raises(InputError, match="loss must be the name of a loss or a RankingLoss, got function"):
            make(model, LOSSES["infonce"].fn)
        with pytest.raises(InputError, match=r"a built loss has its settings; give symmetric to build\(\) instead"):
            make(model, build("infonce"), symmetric=True)
    with pytest.raises(InputError, match="symmetric=True asks each document for its query"):
        CrossEncoderLoss(cross_encoder, "infonce", symmetric=True)
    with pytest.raises(InputError, match="mini_batch_size must be >= 1, got 0"):
        CrossEncoderLoss(cross_encoder, "infonce", mini_batch_size=0)
    cross_encoder.model.config.num_labels = 2
    with pytest.raises(InputError, match="needs a model with num_labels=1, got 2"):
        CrossEncoderLoss(cross_encoder, "infonce")


@pytest.mark.parametrize("make", [SentenceTransformerLoss, CrossEncoderLoss])
def test_without_the_library_it_names_the_extra(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"sentence_transformers is not installed; .* 'rankwright\[train\]'"):
        make(None, "infonce")


def test_without_torch_it_can_be_imported_and_names_the_extra():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from blocked_imports import block_extras; block_extras()\n"
        "from retrieval import CrossEncoderLoss, SentenceTransformerLoss\n"
        "for make in (CrossEncoderLoss, SentenceTransformerLoss):\n"
        "    try: make(None, 'infonce')\n"
        "    except Exception as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout == "torch is not installed; run: pip install 'rankwright[train]'\n" * 2


def test_what_a_model_card_shows(encoder, cross_encoder):
    heat = nn.Parameter(torch.tensor(0.5))
    shown = SentenceTransformerLoss(encoder, "sl_at_k", k=20, temperature=heat).get_config_dict()
    assert shown.items() >= {"loss": "sl_at_k", "k": 20, "temperature": 0.5, "similarity": "cosine"}.items()
    assert shown["learned"] == ["temperature"]
    assert set(shown) == {"loss", "learned", "similarity", *LOSSES["sl_at_k"].defaults}
    other = CrossEncoderLoss(cross_encoder, "softmax_ce", mini_batch_size=8)
    assert other.get_config_dict()["mini_batch_size"] == 8
    assert "learned" not in other.get_config_dict()
    json.dumps([shown, other.get_config_dict()])
    assert LOSSES["softmax_ce"].paper in other.citation
    assert other.citation.startswith("\n@misc{rankwright_softmax_ce,\n")
    assert other.citation.count("{") == other.citation.count("}")


# --- in the trainers -------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer_of(tmp_path):
    """Makes a trainer of two steps over the real rows, which leaves no file outside `tmp_path`."""
    datasets = pytest.importorskip("datasets", reason="needs the dev extra")
    pytest.importorskip("accelerate", reason="needs the dev extra")

    def make(loss, columns, **changes):
        family = "SentenceTransformer" if isinstance(loss, SentenceTransformerLoss) else "CrossEncoder"
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 2,
            "per_device_train_batch_size": 6,
            "learning_rate": 1e-3,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return getattr(library, f"{family}Trainer")(
            model=loss.model,
            args=getattr(library, f"{family}TrainingArguments")(**arguments | changes),
            train_dataset=datasets.Dataset.from_dict(columns),
            loss=loss,
        )

    return make


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(trainer):
    """Train, and see that every weight that may move is finite and that most did move."""
    before = weights(trainer.model)
    trained = trainer.train()
    assert trained.global_step == 2
    assert np.isfinite(trained.training_loss)
    after = weights(trainer.model)
    assert all(value.isfinite().all() for value in after.values())
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert len(moved) > len(after) / 2


def labels_of(kind, documents):
    """Labels of each query's documents, its own first."""
    one = {"binary": [1], "probability": [1.0, 0.25], "grade": [3, 1], "teacher": [4.5, -0.5, 1.0]}[kind]
    rows = [(one + [0] * documents)[:documents] for _ in QUERIES]
    return [[value + place % 2 for value in row] if kind == "teacher" else row for place, row in enumerate(rows)]


FAST = {"infonce", *{entry.labels: name for name, entry in LOSSES.items()}.values()}  # and one of each kind of labels
every_loss = pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)


@every_loss
def test_every_loss_trains_a_dual_encoder(name, encoder, trainer_of):
    columns = {"query": QUERIES, "document": DOCUMENTS, "second": NEGATIVES, "third": DOCUMENTS[::-1]}
    if LOSSES[name].labels != "binary":
        columns["label"] = labels_of(LOSSES[name].labels, 3)
    train(trainer_of(SentenceTransformerLoss(encoder, name), columns))


@every_loss
def test_every_loss_trains_a_cross_encoder(name, cross_encoder, trainer_of):
    """Lists of 12 documents, more than any loss cuts off; one is shorter."""
    lists = [DOCUMENTS[place:] + DOCUMENTS[:place] for place in range(len(DOCUMENTS))]
    labels = labels_of(LOSSES[name].labels, len(DOCUMENTS))
    lists[3], labels[3] = lists[3][:2], labels[3][:2]
    train(trainer_of(CrossEncoderLoss(cross_encoder, name), {"query": QUERIES, "docs": lists, "labels": labels}))


def test_columns_train_a_cross_encoder(cross_encoder, trainer_of):
    loss = CrossEncoderLoss(cross_encoder, "infonce", mini_batch_size=5)
    train(trainer_of(loss, {"anchor": QUERIES, "positive": DOCUMENTS, "negative": NEGATIVES}))


def test_a_learned_temperature_is_trained(encoder, cross_encoder, trainer_of):
    columns = {"anchor": QUERIES, "positive": DOCUMENTS, "negative": NEGATIVES}
    for make, model in ((SentenceTransformerLoss, encoder), (CrossEncoderLoss, cross_encoder)):
        heat = nn.Parameter(torch.tensor(0.5))
        train(trainer_of(make(model, "infonce", temperature=heat), columns))
        assert heat.isfinite()
        assert 0 < abs(float(heat.detach()) - 0.5) < 0.01


def test_evaluation_and_the_saved_model_card(encoder, trainer_of, tmp_path):
    loss = SentenceTransformerLoss(encoder, "sl_at_k", k=20)
    trainer = trainer_of(loss, {"anchor": QUERIES, "positive": DOCUMENTS}, prompts={"anchor": "find: "})
    train(trainer)
    measured = trainer.evaluate(trainer.train_dataset)
    assert np.isfinite(measured["eval_loss"])
    encoder.save(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    for text in (
        "SentenceTransformerLoss",
        '"loss": "sl_at_k"',
        '"k": 20',
        "@misc{rankwright_sl_at_k",
        "arXiv:2508.05673",
    ):
        assert text in card
    reloaded = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(vectors(reloaded, QUERIES), vectors(encoder.eval(), QUERIES))
