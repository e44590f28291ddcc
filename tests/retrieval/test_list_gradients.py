"""The gradient of a step of lists: the same however the step is cut, for every loss, and with dropout too."""

import numpy as np
import pytest
from tiny_files import documents, queries
from tiny_rerankers import make_classifier

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("sentence_transformers", reason="needs the train extra")

from rankers.lists import pad_lists  # noqa: E402
from rankers.losses import LOSSES, LossSum  # noqa: E402
from rankers.random_state import RandomState  # noqa: E402
from retrieval.candidate_lists import CandidateList  # noqa: E402
from retrieval.cross_encoder import CrossEncoder, list_batches  # noqa: E402
from retrieval.list_gradients import TokenizedList, backward  # noqa: E402
from retrieval.objective import build_loss  # noqa: E402
from retrieval.reranker_config import RerankerConfig  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [f"{d['title']} {d['text']}" for d in documents()]
QUERIES = list(queries().values())
SIZES = (5, 1, 7, 3)  # one list of one document
EXPRESSIONS = [
    *LOSSES,
    "bixse + 0.5*ranknet",
    "mw + isogclr",  # scores of all lists at once, and a state of each query
    "0.3*softmax_ce + point_ce",
    "kl_div + margin_mse",
]
BUDGETS = (1, 300, 10**6)  # a list of a batch, some, all


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    return make_classifier(tmp_path_factory.mktemp("gradients") / "one", f"{tiny_model}-bert")


@pytest.fixture(scope="module")
def reranker(folder):
    return CrossEncoder.load(folder, precision="fp32", device="cpu")


def made_loss(expression, **settings):
    config = RerankerConfig(model="m", data="d", out="o", loss=expression, loss_settings=settings)
    loss = build_loss(config, bounded=False)
    if isinstance(loss, LossSum):
        loss.max_grade = 3.0
    loss.remember(len(SIZES) + 2)
    queries = torch.arange(len(SIZES) + 2)
    held = loss.recall(queries) if loss.keeps_state else {}
    loss.keep(queries, {name: torch.linspace(0.1, 0.4, len(queries)) for name in held})  # each query has its own
    return loss


def labels_of(loss, size, random):
    """Labels that a loss takes, the first one relevant."""
    if loss.kind == "teacher":
        return random.normal(size=size)
    if not all(term.entry.several_positives for term in loss.terms):
        return np.eye(size)[0]
    found = random.integers(0, 4 if loss.kind == "grade" else 2, size).astype(float)
    found[0] = 1
    return found / 2 if loss.kind == "probability" else found


def step_of(reranker, loss, sizes=SIZES):
    random = np.random.default_rng(1)
    step = []
    for number, size in enumerate(sizes):
        texts = [TEXTS[i] for i in random.permutation(len(TEXTS))[:size]]
        labels = labels_of(loss, size, random).astype(np.float32)
        made = CandidateList(f"q{number}", QUERIES[number], number + 1, texts, labels)
        step.append(TokenizedList(made, reranker.tokenize([made.query] * size, texts)))
    return step


def parameters(reranker, loss):
    return [*reranker.model.parameters(), *loss.parameters()]


def gradient(reranker, loss):
    """The gradient that stands in the parameters, which are cleared."""
    held = parameters(reranker, loss)
    found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in held])
    for p in held:
        p.grad = None
    return found


def one_matrix(reranker, loss, step, groups=None):
    """Value, gradient and new state of the loss of one padded matrix, all of it with its graph."""
    scores = [None] * len(step)
    for rows in groups or [[row] for row in range(len(step))]:
        sizes = [len(step[row].made.documents) for row in rows]
        found = reranker.forward([pair for row in rows for pair in step[row].sequences], sizes)
        for row, part in zip(rows, found.split(sizes), strict=True):
            scores[row] = part
    labels = [torch.from_numpy(one.made.labels) for one in step]
    numbers = torch.tensor([one.made.number for one in step])
    state = loss.recall(numbers) if loss.keeps_state else None
    padded = pad_lists(scores, labels)
    if state is None:
        value, new = loss(*padded), {}
    else:
        totals = loss.totals(loss.tally(padded.labels, padded.where))
        value, new = loss.share(*padded, totals=totals, state=state)
    value.backward()
    return float(value.detach()), gradient(reranker, loss), new


def assert_close(found, expected):
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_gradient_of_a_step_is_that_of_one_matrix_however_it_is_cut(reranker, expression, monkeypatch):
    loss = made_loss(expression)
    step = step_of(reranker, loss)
    value, expected, state = one_matrix(reranker, loss, step)
    assert float(expected.abs().max()) > 1e-4
    for budget in BUDGETS:
        loss = made_loss(expression)
        monkeypatch.setattr(reranker, "batch_tokens", budget)
        assert backward(reranker, loss, step) == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert_close(gradient(reranker, loss), expected)
        kept = loss.recall(torch.tensor([one.made.number for one in step])) or {}
        assert kept.keys() == state.keys()
        for name, values in kept.items():
            torch.testing.assert_close(values, state[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("expression", "settings"),
    [
        ("softmax_ce", {"temperature": "learned"}),
        ("bixse", {"bias": "learned"}),
        ("bixse", {"bias": -2.0}),
        ("mw + softmax_ce", {"softmax_ce.scale": "learned"}),
    ],
)
def test_learned_settings_get_the_gradient_of_one_matrix_too(reranker, expression, settings, monkeypatch):
    loss = made_loss(expression, **settings)
    step = step_of(reranker, loss)
    value, expected, _ = one_matrix(reranker, loss, step)
    for budget in BUDGETS:
        monkeypatch.setattr(reranker, "batch_tokens", budget)
        assert backward(reranker, loss, step) == pytest.approx(value, rel=1e-5)
        assert_close(gradient(reranker, loss), expected)


def test_the_loss_over_rows_is_the_mean_over_lists(reranker, monkeypatch):
    loss = made_loss("softmax_ce")
    step = step_of(reranker, loss)
    monkeypatch.setattr(reranker, "batch_tokens", 300)
    alone = [backward(reranker, loss, [one]) for one in step]
    total = gradient(reranker, loss)
    assert backward(reranker, loss, step) == pytest.approx(np.mean(alone), rel=1e-5)
    assert_close(gradient(reranker, loss), total / len(step))


@pytest.mark.parametrize("expression", ["softmax_ce", "mw", "bixse", "mw + isogclr"])
def test_with_dropout_a_batch_that_is_computed_again_has_the_same_mask(folder, expression):
    reranker = CrossEncoder.load(folder, precision="fp32", device="cpu", batch_tokens=300)
    reranker.model.train()
    loss = made_loss(expression)
    step = step_of(reranker, loss)
    groups = list(list_batches(SIZES, [one.width for one in step], reranker.batch_tokens))
    assert len(groups) > 2
    torch.manual_seed(5)
    value, expected, _ = one_matrix(reranker, loss, step, groups)
    after = RandomState.now()
    torch.manual_seed(5)
    assert backward(reranker, made_loss(expression), step) == pytest.approx(value, rel=1e-5)
    assert torch.equal(RandomState.now().cpu, after.cpu)  # what is drawn next stays the same
    assert_close(gradient(reranker, loss), expected)
    torch.manual_seed(6)
    assert backward(reranker, made_loss(expression), step) != pytest.approx(value, rel=1e-3)


def test_a_list_of_one_document_has_no_gradient_under_a_loss_that_compares(reranker):
    for expression in ("softmax_ce", "ranknet", "poly1", "hinge"):
        loss = made_loss(expression)
        assert backward(reranker, loss, step_of(reranker, loss, sizes=(1, 1))) == pytest.approx(0, abs=1e-6)
        assert float(gradient(reranker, loss).abs().max()) <= 1e-7


def test_a_step_without_lists_has_no_loss(reranker):
    assert backward(reranker, made_loss("softmax_ce"), []) == 0


@pytest.mark.parametrize("expression", ["softmax_ce", "mw"])
def test_a_loss_that_is_not_finite_is_returned_without_a_gradient(folder, expression):
    reranker = CrossEncoder.load(folder, precision="fp32", device="cpu", batch_tokens=300)
    with torch.no_grad():
        reranker.model.transformer.classifier.bias.fill_(float("nan"))
    loss = made_loss(expression)
    assert np.isnan(backward(reranker, loss, step_of(reranker, loss)))
    assert all(p.grad is None for p in parameters(reranker, loss))
