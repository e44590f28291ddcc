"""Training a head: its gradient is that of the plain loss, its batches are those of the encoder's training."""

import pytest
import torch
from bench_runs import config

from rankers.losses import LossSum, build, build_expression
from retrieval.bench_config import build as build_checked
from retrieval.bench_data import make_parts
from retrieval.bench_modes import Sources, train_config
from retrieval.collection import Collection
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.head_training import (
    EmbeddedCollection,
    NotFiniteError,
    _add_gradient,
    head_batches,
    make_batcher,
    train_head,
)
from retrieval.heads import Head
from retrieval.rows import TrainingRow
from retrieval.train_config import TrainConfig

LOSSES = ("infonce", "bixse", "mw", "sl_at_k", "softmax_ce", "listmle", "lambdarank", "bixse + 0.5*ranknet")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWRIGHT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def bench(tiny_model, tiny_collection, tmp_path_factory):
    """The settings, their part, its data, and the cached embeddings."""
    settings = config(tiny_model, tiny_collection, "o", losses=LOSSES)
    collection = Collection.load(tiny_collection)
    (part,) = make_parts(settings, collection, tmp_path_factory.mktemp("parts") / "splits")
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu")
    sources = Sources(settings)
    return settings, part, sources.data(part), EmbeddedCollection(encoder, collection)


def prepared(bench, name, **changes):
    settings, part, data, cached = bench
    own = train_config(settings, part, settings.grid(name)[0], 0, part.folder)
    own = TrainConfig.from_dict(own.to_dict() | changes)
    loss = build_checked(name, {})
    if isinstance(loss, LossSum):
        loss.max_grade = data.max_grade
    return loss, head_batches(cached, data, data.label_rule(loss), own), own


@pytest.mark.parametrize("sides", ["query", "both"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_plain_loss(bench, name, kind, sides):
    cached = bench[3]
    loss, batches, _ = prepared(bench, name)
    batch = batches[0][0]
    head = Head(cached.documents.shape[1], kind, sides=sides, hidden=6)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    _add_gradient(head, loss, cached, batch, 1)
    found = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()

    queries = head.queries(cached.queries[batch.queries])[batch.row_query]
    labels, where = map(torch.from_numpy, batch.targets.rows(0, len(batch.targets)))
    loss(queries @ head.documents(cached.documents[batch.documents]).T, labels, where).backward()
    for one, parameter in zip(found, head.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-6)
    assert max(float(one.abs().max()) for one in found) > 1e-6


def test_batches_are_those_of_the_encoders_training(bench):
    _, _, data, cached = bench
    loss, batches, own = prepared(bench, "bixse")
    batcher = make_batcher(data, data.label_rule(loss), own)
    texts = cached.collection.corpus.texts(range(len(cached.collection.corpus)))
    names = list(cached.query_row)
    for epoch, prepared_epoch in enumerate(batches):
        for numbers, batch in zip(batcher.epoch(epoch), prepared_epoch, strict=True):
            whole = batcher.make(numbers.tolist(), epoch)
            assert [names[row] for row in batch.queries] == whole.query_ids
            assert [texts[row] for row in batch.documents] == whole.documents
            assert (batch.targets.rows(0, len(batch.targets))[0] == whole.labels).all()


def test_cached_vectors_are_the_encoders(bench, tiny_model):
    cached = bench[3]
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu")
    queries = cached.collection.queries()
    torch.testing.assert_close(
        cached.queries, torch.from_numpy(encoder.encode_query(list(queries.values()))), rtol=0, atol=1e-6
    )
    texts = cached.collection.corpus.texts(range(len(cached.collection.corpus)))
    torch.testing.assert_close(cached.documents, torch.from_numpy(encoder.encode_document(texts)), rtol=0, atol=1e-6)


def test_embeddings_are_computed_once(bench, tiny_model, tiny_collection, monkeypatch):
    cached = bench[3]
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu")
    monkeypatch.setattr(Encoder, "encode_blocks", lambda *_, **__: pytest.fail("encoded again"))
    again = EmbeddedCollection(encoder, Collection.load(tiny_collection))
    assert torch.equal(again.documents, cached.documents)
    assert torch.equal(again.queries, cached.queries)


def test_another_prompt_is_another_cache_entry(bench, tiny_model, tiny_collection, cache):
    before = set((cache / "embeddings").iterdir())
    encoder = Encoder.load(tiny_model, precision="fp32", device="cpu", query_prompt="otter ")
    other = EmbeddedCollection(encoder, Collection.load(tiny_collection))
    assert not torch.allclose(other.queries, bench[3].queries, atol=1e-3)
    assert set((cache / "embeddings").iterdir()) > before


def test_training_lowers_the_loss_and_keeps_the_best_moment(bench):
    cached = bench[3]
    loss, batches, own = prepared(bench, "softmax_ce", learning_rate=3e-3, num_train_epochs=6.0)
    values = iter([0.1, 0.5, 0.9, 0.3])
    seen = []

    def score(head):
        seen.append({name: value.clone() for name, value in head.state_dict().items()})
        return next(values)

    @torch.no_grad()
    def value(head):
        batch = batches[0][0]
        queries = head.queries(cached.queries[batch.queries])[batch.row_query]
        labels, where = map(torch.from_numpy, batch.targets.rows(0, len(batch.targets)))
        return float(loss(queries @ head.documents(cached.documents[batch.documents]).T, labels, where))

    head = Head(cached.documents.shape[1])
    before = value(head)
    run = train_head(head, loss, cached, batches, own, score, evaluations=3)
    assert value(head) < before - 0.01
    assert run.steps == 6 * len(batches[0])
    assert run.curve == [(0, 0.1), (run.steps // 3, 0.5), (2 * run.steps // 3, 0.9), (run.steps, 0.3)]
    assert run.best_step == 2 * run.steps // 3
    assert torch.equal(head.weight, seen[2]["weight"])
    assert not torch.equal(head.weight, seen[3]["weight"])


def test_a_run_is_the_same_every_time(bench):
    weights = []
    for _ in range(2):
        loss, batches, own = prepared(bench, "infonce", learning_rate=1e-2)
        head = Head(bench[3].documents.shape[1], "mlp", sides="both", hidden=5)
        rising = iter([0.0, 1.0, 2.0])
        train_head(head, loss, bench[3], batches, own, lambda head, rising=rising: next(rising), evaluations=2)
        weights.append(head.state_dict())
    assert weights[0]["second"].abs().max() > 0
    for name, one in weights[0].items():
        assert torch.equal(one, weights[1][name])


def test_parts_of_an_epoch_stop_early(bench):
    loss, batches, own = prepared(bench, "infonce", num_train_epochs=1.5)
    run = train_head(Head(32), loss, bench[3], batches, own, lambda head: 0.0, evaluations=1)
    assert (run.steps, len(batches)) == (5, 2)  # 36 queries in batches of 16: 3 steps an epoch


def test_learned_settings_of_a_loss_are_trained_too(bench):
    _, batches, own = prepared(bench, "bixse", loss_learning_rate=0.1)
    loss = build("bixse", scale="learned", bias="learned")
    before = {name: float(value.detach()) for name, value in loss.named_parameters()}
    values = iter([0.0, 1.0])
    train_head(Head(32), loss, bench[3], batches, own, lambda head: next(values), evaluations=1)
    assert all(abs(float(value.detach()) - before[name]) > 1e-3 for name, value in loss.named_parameters())


def test_a_loss_with_state_goes_on_from_its_own(bench):
    _, batches, own = prepared(bench, "infonce")
    loss = build("isogclr")
    train_head(Head(32), loss, bench[3], batches, own, lambda head: 0.0, evaluations=1)
    assert loss.keeps_state


def test_a_loss_that_is_not_finite_stops_the_run(bench):
    loss, batches, own = prepared(bench, "infonce")
    head = Head(32)
    with torch.no_grad():
        head.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="the loss is nan at step 1"):
        train_head(head, loss, bench[3], batches, own, lambda head: 0.0, evaluations=1)


@pytest.mark.parametrize(
    "row",
    [
        TrainingRow(query_id="q-otter-0", query="another text", positive_ids=("otter-0",)),
        TrainingRow(query_id="new", query="what is new", positive_ids=("otter-0",)),
        TrainingRow(query_id="q-otter-1", query="where is the otter found", positives=("a text of its own",)),
    ],
)
def test_texts_that_were_not_embedded_are_refused(bench, row):
    with pytest.raises(InputError, match=f"the row of query '{row.query_id}' brings a text of its own"):
        bench[3].refuse_other_texts([row])


def test_a_sum_learns_with_grades_and_probabilities(bench):
    """The labels of its terms differ: grades, and grades divided by the highest."""
    _, batches, own = prepared(bench, "bixse + 0.5*ranknet")
    loss = build_expression("bixse + 0.5*ranknet")
    train_head(Head(32), loss, bench[3], batches, own, lambda head: 0.0, evaluations=1, max_grade=3.0)
    assert loss.max_grade == 3.0
