"""`rankwright selftest` proves what it says, and finds an engine that is broken."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import flags, settings

from rankers import engine
from rankers.losses import LOSSES, build, build_expression
from retrieval import selftest, selftest_steps, steps
from retrieval.cli.main import main
from retrieval.encoder import Encoder
from retrieval.errors import InputError
from retrieval.selftest import TOLERANCE, Proof, Step, Way, compared, config_proof, prove, random_proofs
from retrieval.selftest_examples import DOCUMENTS, QUERIES, random_batch, random_encoder
from retrieval.selftest_steps import Case
from retrieval.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def config(tiny_model, tiny_collection, **changes) -> TrainConfig:
    return TrainConfig.from_dict(settings(tiny_model, tiny_collection, Path("unused"), **changes))


# --- the comparison ---------------------------------------------------------------------------------------------------

WANTED = Step(
    2.0, {"model.a": torch.tensor([4.0, -1.0]), "model.b": torch.tensor([[0.0]]), "loss.s": torch.tensor(8.0)}
)


def test_the_largest_difference_by_hand():
    moved = {"model.a": torch.tensor([4.0, -1.2]), "model.b": torch.tensor([[0.1]]), "loss.s": torch.tensor(8.08)}
    way = compared("cached", Step(2.01, moved), WANTED)
    assert way.loss == pytest.approx(0.005)
    assert way.gradient == pytest.approx(0.05)  # 0.2 / 4, and not / 8: the loss's own entry hides nothing
    assert way.where == "model.a"
    assert not way.good
    only_loss = compared("cached", Step(2.0, {**WANTED.gradients, "loss.s": torch.tensor(8.08)}), WANTED)
    assert only_loss.gradient == pytest.approx(0.01)
    assert only_loss.where == "loss.s"
    assert compared("cached", WANTED, WANTED).good


def test_a_loss_near_0_is_compared_with_the_terms_that_it_is_made_of():
    gradients = WANTED.gradients
    assert compared("plain", Step(1e-6, gradients), Step(0.0, gradients)).loss == pytest.approx(1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_differs(bad):
    broken = {**WANTED.gradients, "model.b": torch.tensor([[bad]])}
    way = compared("plain", Step(2.0, broken), WANTED)
    assert (way.gradient, way.where, way.good) == (math.inf, "model.b", False)
    assert not compared("plain", Step(2.0, WANTED.gradients), Step(2.0, broken)).good
    assert not compared("plain", Step(bad, WANTED.gradients), WANTED).good


def test_a_gradient_of_0_proves_nothing():
    nothing = {name: torch.zeros_like(gradient) for name, gradient in WANTED.gradients.items()}
    way = compared("plain", Step(0.0, nothing), Step(0.0, nothing))
    assert not way.good
    assert "nothing is proved" in way.note


def test_a_way_that_cannot_be_taken_is_no_failure():
    skipped = Way("2 processes", taken=False, note="not possible")
    assert Proof("mw", (Way("plain", 0.0, TOLERANCE), skipped)).good
    assert not Proof("mw", (Way("plain", 0.0, 2 * TOLERANCE), skipped)).good


# --- the random encoder and its batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_random_batches_are_of_the_losses_kind(name):
    loss = build(name)
    tokens = random_batch(loss)
    labels, where = (torch.from_numpy(a) for a in (tokens.batch.labels, tokens.batch.where))
    assert labels.shape == (len(tokens.batch.row_query), DOCUMENTS)
    assert (len(tokens.queries), len(tokens.documents)) == (QUERIES, DOCUMENTS)
    assert 0 < (~where).sum() < where.numel() / 1.5
    assert float(loss.count(labels, where)) > 0
    if not loss.entry.several_positives:
        assert ((labels > 0) & where).sum(1).tolist() == [1] * len(labels)
        assert len(labels) > QUERIES  # some queries have several rows
    assert tokens.documents == random_batch(loss).documents
    assert tokens.documents != random_batch(loss, seed=1).documents
    assert len({len(text) for text in tokens.documents}) > 3  # padding is there to be got wrong


def test_the_random_encoder_is_the_same_each_time_and_leaves_the_random_state():
    before = torch.get_rng_state()
    one, other = random_encoder(CPU), random_encoder(CPU)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        found = one.forward([[5, 6, 7], [5]])
        torch.testing.assert_close(found, other.forward([[5, 6, 7], [5]]))
        torch.testing.assert_close(found[1:], one.forward([[5]]))  # padding changes nothing
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    one.model.train()
    assert not torch.equal(one.forward([[5, 6, 7]]), one.forward([[5, 6, 7]]))  # dropout


# --- every loss, one process ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_proof(one_thread):
    """All losses without a config, in this process."""
    return {proof.loss: proof for proof in random_proofs(nproc=1)}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_passes(name, every_proof):
    proof = every_proof[name]
    assert [way.name for way in proof.ways] == ["plain", "cached", "row blocks"]
    for way in proof.ways:
        assert way.good, way
        assert way.taken
        assert 0 <= way.gradient < TOLERANCE
        assert way.where.startswith("model.")
    assert any(way.gradient > 0 for way in proof.ways)  # the ways are not one and the same


@pytest.mark.parametrize(
    ("expression", "given"),
    [
        ("bixse + 0.5*ranknet", {"bixse.scale": "learned", "bixse.bias": "learned"}),
        ("infonce", {"symmetric": True, "temperature": "learned"}),
        ("isogclr + 0.1*mw", {}),
        ("mw", {"method": "exact"}),
    ],
)
def test_sums_learned_settings_and_state(expression, given):
    [proof] = random_proofs([expression], given, nproc=1)
    assert proof.good, proof
    whole = "it needs the whole matrix" in proof.ways[2].note
    assert whole == ("method" in given)


def test_steps_leave_no_gradient_and_the_model_for_search():
    encoder = random_encoder(CPU)
    case = Case.cut("infonce", {}, random_batch(build("infonce")), queries=QUERIES)
    random = torch.get_rng_state()
    prove(encoder, [case], nproc=1)
    assert all(p.grad is None for p in encoder.model.parameters())
    assert not encoder.model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batch_is_cut_into_chunks_and_blocks():
    tokens = random_batch(build("softmax_ce"))
    case = Case.cut("softmax_ce", {}, tokens)
    assert (case.chunk_size, case.block) == (3, 3 * DOCUMENTS)
    assert Case.cut("softmax_ce", {}, tokens, chunk_size=2).chunk_size == 2
    assert Case.cut("softmax_ce", {}, tokens, chunk_size=512).chunk_size == 3  # one chunk would prove nothing


def test_a_state_has_moved_on_from_its_first_value():
    encoder, tokens = random_encoder(CPU), random_batch(build("isogclr"))
    moved = selftest._moved_on(encoder, Case.cut("isogclr", {}, tokens, queries=QUERIES))
    assert moved.state["state_log_average"].isfinite().all()
    held = moved.loss(CPU).recall(torch.arange(QUERIES))
    assert torch.equal(held["log_average"], moved.state["state_log_average"])


# --- a broken engine is found -----------------------------------------------------------------------------------------


def wrong_dropout(monkeypatch):
    monkeypatch.setattr(engine.RandomState, "restore", lambda self: None)


def wrong_documents(monkeypatch):
    sound = engine.gradients

    def broken(*arguments, **rest):
        found = sound(*arguments, **rest)
        return replace(found, documents=found.documents * 1.01)

    monkeypatch.setattr(engine, "gradients", broken)


def wrong_order(monkeypatch):
    sound = steps.embedding_chunks

    def broken(encoder, tokens, chunk_size):
        chunks, order = sound(encoder, tokens, chunk_size)
        return chunks, order.flip(0)

    monkeypatch.setattr(steps, "embedding_chunks", broken)


def wrong_mask(monkeypatch):
    sound = selftest_steps._Slice.rows

    def broken(self, start, stop):
        part = sound(self, start, stop)
        return replace(part, where=torch.ones_like(part.where)) if start else part

    monkeypatch.setattr(selftest_steps._Slice, "rows", broken)


@pytest.mark.parametrize(
    ("break_it", "ways"),
    [
        (wrong_dropout, {"cached", "row blocks"}),
        (wrong_documents, {"cached", "row blocks"}),
        (wrong_order, {"cached"}),
        (wrong_mask, {"row blocks"}),
    ],
)
def test_a_broken_engine_is_found(break_it, ways, monkeypatch, capsys):
    break_it(monkeypatch)
    assert main(["selftest", "--nproc", "1", "--loss", "softmax_ce", "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["ok"] is False
    assert {way["way"] for way in found["losses"][0]["ways"] if not way["ok"]} == ways
    assert err.startswith("error: 1 of 1 losses differ; softmax_ce, ")
    assert " at model.0." in err
    assert err.count("\n") == 1


def test_a_setting_of_the_loss_that_gets_a_wrong_gradient_is_named(monkeypatch):
    sound = selftest_steps.cached_backward

    def broken(loss, *arguments, **rest):
        found = sound(loss, *arguments, **rest)
        next(loss.parameters()).grad *= 1.5
        return found

    monkeypatch.setattr(selftest_steps, "cached_backward", broken)
    [proof] = random_proofs(["bixse"], {"scale": "learned"}, nproc=1)
    assert [way.good for way in proof.ways] == [True, True, False]
    assert proof.ways[2].where == "loss.learned.log_scale"


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(one_thread):
    """Three cases, in one start of two processes."""
    encoder, cases = random_encoder(CPU), []
    for expression, given in (
        ("mw", {}),
        ("infonce", {"symmetric": True, "temperature": "learned"}),
        ("isogclr", {}),
        ("mw", {"method": "exact"}),
    ):
        tokens = random_batch(build_expression(expression, given))
        cases.append(Case.cut(expression, given, tokens, queries=QUERIES))
    return prove(encoder, cases, nproc=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_two_processes_give_the_gradient_of_one(number, together):
    way = together[number].ways[-1]
    assert way.name == "2 processes"
    assert way.taken
    assert way.good, way
    assert way.where


@pytest.mark.slow
def test_a_loss_that_needs_the_whole_matrix_says_so(together):
    way = together[3].ways[-1]
    assert together[3].good
    assert not way.taken
    assert way.note == "not possible: it needs the whole matrix in one process"


# --- on data of one's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_size": 2, "precision": "bf16"},
        {"loss": "bixse + 0.5*ranknet", "loss__bixse.scale": "learned"},
        {"loss": "isogclr", "num_positives": 2},
        {"matryoshka_dims": [32, 8], "query_prompt": "query: "},
    ],
)
def test_the_users_model_data_loss_and_settings(changes, tiny_model, tiny_collection):
    proof, case = config_proof(config(tiny_model, tiny_collection, **changes), nproc=1, queries=5)
    assert proof.good, proof
    assert len(case.tokens.queries) == 5
    assert case.tokens.batch.query_ids[0].startswith("q-")
    assert case.chunk_size <= 2
    assert proof.loss == changes.get("loss", "infonce")


def test_the_user_is_told_on_what_and_nothing_is_written(tiny_model, tiny_collection, tmp_path, capsys):
    values = settings(tiny_model, tiny_collection, tmp_path / "run", loss="mw")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    assert main(["selftest", "--config", str(path), "--nproc", "1", "--queries", "4", "--quiet"]) == 0
    out, err = capsys.readouterr()
    first, second, *table = out.splitlines()
    assert first.startswith(f"model {tiny_model}, data {tiny_collection}, loss mw, queries 4, documents ")
    assert first.endswith("; fp32")
    assert "tolerance 0.0001" in second
    assert [line.split("  ")[0] for line in table[2:5]] == ["plain", "cached", "row blocks"]
    assert table[-1] == "all ways agree"
    assert err == ""
    assert list(tmp_path.iterdir()) == [path]


def test_flags_of_training_win_over_the_file(tiny_model, tiny_collection, tmp_path, capsys):
    values = settings(tiny_model, tiny_collection, tmp_path / "run")
    assert main(["selftest", *flags(values), "--loss", "bixse", "--nproc", "1", "--queries", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert (found["loss"], found["queries"], found["precision"]) == ("bixse", 3, "fp32")
    [proof] = found["losses"]
    for way in proof["ways"]:
        assert way["ok"]
        assert way["gradient"] < found["tolerance"]
        assert way["where"].startswith("model.")


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "x"], "missing --data"),
        (["--data", "x"], "missing --model"),
        (["--loss", "infonec"], "did you mean 'infonce'"),
        (["--loss", "mw", "--set", "loss.temprature=1"], "did you mean 'temperature'"),
        (["--set", "loss.temperature=1"], "'loss.temperature' is a setting of which loss? give --loss"),
        (["--loss", "mw", "--nproc", "0"], "nproc must be >= 1, got 0"),
        (["--loss", "mw", "--nproc", "10"], "nproc=10 processes cannot share 9 queries and 31 documents"),
        (["--queries", "4"], "--queries belongs to data of your own"),
        (["--resume"], "unknown flag '--resume'"),
        (["--overwrite"], "unknown flag '--overwrite'"),
        (["--dry-run"], "unknown flag '--dry-run'"),
        (["--nprocs", "1"], "unknown flag '--nprocs'; did you mean '--nproc'"),
    ],
)
def test_wrong_usage_is_one_line(arguments, told, capsys):
    assert main(["selftest", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.count("\n") == 1


def test_help_has_the_flags_of_training_and_none_that_writes(capsys):
    assert main(["selftest", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--nproc", "--queries", "--timeout", "--chunk-size", "--loss", "--json", "--config"):
        assert f"{flag} " in out or f"[{flag}]" in out
    for flag in ("--overwrite", "--resume", "--dry-run"):
        assert flag not in out


def test_every_loss_is_a_line_of_the_table(every_proof, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "random_proofs", lambda expressions, *_, **__: [every_proof[e] for e in expressions])
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["loss", "plain", "cached", "row", "blocks", "largest", "at"]
    assert [line.split()[0] for line in lines[4:-2]] == list(LOSSES)
    assert lines[-1] == "all ways agree"


def test_an_encoder_without_a_gradient_is_refused_as_a_proof():
    encoder = random_encoder(CPU)
    for parameter in encoder.model.parameters():
        parameter.requires_grad_(False)
    assert isinstance(encoder, Encoder)
    case = Case.cut("infonce", {}, random_batch(build("infonce")), queries=QUERIES)
    with pytest.raises((InputError, RuntimeError)):
        prove(encoder, [case], nproc=1)
