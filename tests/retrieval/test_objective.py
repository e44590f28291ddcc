"""Runs that ask for more than one loss and a plain step: chunks, sums, Matryoshka, learned settings, teachers, SAM."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_files import read_jsonl, rows_file
from training_runs import Crash, crash_in_step, lines, settings, weights

from rankers.losses import LOSSES
from retrieval import objective
from retrieval.checkpoints import checkpoint_folder
from retrieval.errors import InputError
from retrieval.training import dry_run

pytestmark = pytest.mark.usefixtures("one_thread")


def losses(folder):
    return [line["loss"] for line in lines(folder)]


@pytest.mark.parametrize("loss", ["infonce", "bixse + 0.5*ranknet"])
def test_a_run_in_chunks_is_the_plain_run(run, tmp_path, loss):
    """The chunks are those of the plain forward passes, so that both draw the same dropout."""
    run("plain", loss=loss, max_steps=4, logging_steps=1)
    run("chunks", loss=loss, max_steps=4, logging_steps=1, chunk_size=1_000)
    assert losses(tmp_path / "chunks") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_a_run_in_chunks_resumes_to_the_bit(run, tmp_path, monkeypatch):
    how = {"loss": "sl_at_k", "loss__quantile": "estimated", "chunk_size": 5, "save_steps": 2, "max_steps": 6}
    run("whole", **how)
    with monkeypatch.context() as patch:
        crash_in_step(patch, 4)
        with pytest.raises(Crash):
            run("cut", **how)
    run("cut", resume=True, **how)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    states = [
        load_file(checkpoint_folder(tmp_path / n, 6) / "loss.safetensors")["state_beta"] for n in ("cut", "whole")
    ]
    assert torch.equal(*states)
    assert (states[0] != 0).any()


def test_learned_settings_move_and_are_logged(run, tmp_path):
    run(loss="bixse", loss__scale="learned", loss__bias="learned", max_steps=4, logging_steps=1)
    logged = [line["loss.learned.log_scale"] for line in lines(tmp_path / "run")]
    assert logged[0] != pytest.approx(np.log(10), abs=1e-6)
    assert len(set(logged)) == 4
    assert lines(tmp_path / "run")[-1]["loss.learned.bias_offset"] != 0


def test_what_cannot_be_learned_is_one_line(run):
    with pytest.raises(InputError, match="loss: k of sl_at_k cannot be learned; scale, temperature and bias can"):
        run(loss="sl_at_k", loss__k="learned")


def test_a_sum_in_a_model_card_and_its_settings_by_name(run, tmp_path):
    run(loss="bixse + 0.5*ranknet", max_steps=1, **{"loss.ranknet.temperature": 0.2})
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "`bixse + 0.5*ranknet`" in card
    assert "ranknet.temperature=0.2" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "bixse + ranknett"}, "unknown loss 'ranknett'; did you mean 'ranknet'"),
        ({"loss": "bixse + bixse"}, "names bixse twice"),
        ({"loss": "bixse - ranknet"}, "is no loss; wanted a sum like"),
        ({"loss": "0*bixse"}, "the weight of bixse must be > 0"),
        ({"loss": "infonce + kl_div"}, "cannot share labels"),
        ({"loss": "mw + bixse", "loss__temperature": 1}, "belongs to which loss of .* write loss.mw.temperature"),
        ({"loss": "mw + bixse", "loss__sl.k": 1}, "of a loss that 'mw \\+ bixse' does not name"),
        ({"matryoshka_dims": [4096]}, "matryoshka_dims: 4096 is more than the model's"),
        ({"matryoshka_dims": [8, 8]}, "matryoshka_dims must be different numbers"),
        ({"loss": "isogclr", "matryoshka_dims": [8]}, "keeps one state of each query"),
        ({"loss_learning_rate": 0}, "loss_learning_rate must be > 0"),
        ({"chunk_size": 0}, "chunk_size must be >= 1"),
        ({"sam_rho": -1}, "sam_rho must be >= 0"),
        ({"loss": "margin_mse"}, "has a teacher's scores of two documents; give rows with positive_scores"),
    ],
)
def test_impossible_objectives_are_one_line_before_a_step(run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(**changes)
    assert not (tmp_path / "run" / "model").exists()


def test_the_first_dimensions_of_a_matryoshka_run_learn(run, tmp_path):
    run("plain", max_steps=6)
    run("dolls", max_steps=6, matryoshka_dims=[16, 4])
    assert weights(tmp_path / "plain") != weights(tmp_path / "dolls")
    first, last = (lines(tmp_path / "dolls")[i]["loss"] for i in (0, -1))
    assert last < first


# --- sharpness-aware steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_sharpness_aware_run_takes_two_gradients_of_the_same_batch_and_dropout(
    run, tmp_path, monkeypatch, chunk_size
):
    seen = []
    backward = objective.backward

    def watching(encoder, loss, batches, **how):
        seen.append((torch.get_rng_state().sum().item(), [b.batch.query_ids for b in batches], how["keep_state"]))
        return backward(encoder, loss, batches, **how)

    monkeypatch.setattr(objective, "backward", watching)
    run(sam_rho=0.05, max_steps=3, chunk_size=chunk_size)
    assert len(seen) == 6
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert first[:2] == second[:2]
        assert (first[2], second[2]) == (False, True)  # a state goes on once a step
    monkeypatch.setattr(objective, "backward", backward)
    run("plain", max_steps=3)
    assert weights(tmp_path / "plain") != weights(tmp_path / "run")


def test_a_radius_of_nearly_nothing_is_the_plain_run(run, tmp_path):
    run("plain", max_steps=4, logging_steps=1)
    run("tiny", max_steps=4, logging_steps=1, sam_rho=1e-9)
    assert losses(tmp_path / "tiny") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


# --- a teacher's scores ----------------------------------------------------------------------------------------------


def taught(tmp_path, tiny_collection):
    """Rows of the collection's queries whose documents a teacher has scored, and one that it has not."""
    corpus = [json.loads(line)["_id"] for line in (tiny_collection / "corpus.jsonl").read_text().splitlines()]
    rows = [
        {
            "query_id": f"t{i}",
            "query": f"query number {i}",
            "positive_ids": [corpus[i]],
            "negative_ids": corpus[i + 1 : i + 4],
            "positive_scores": [3.0 + i],
            "negative_scores": [1.0, -2.5, 0.25 * i],
        }
        for i in range(8)
    ]
    rows.append({"query_id": "t9", "query": "not scored", "positive_ids": [corpus[9]], "negative_ids": [corpus[0]]})
    return rows_file(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("name", [name for name, entry in LOSSES.items() if entry.labels == "teacher"])
def test_a_student_follows_its_teacher(run, tmp_path, tiny_collection, name, monkeypatch):
    seen = []
    backward = objective.backward

    def watching(encoder, loss, batches, **how):
        seen.extend(b.batch for b in batches)
        return backward(encoder, loss, batches, **how)

    monkeypatch.setattr(objective, "backward", watching)
    path = taught(tmp_path, tiny_collection)
    run(loss=name, rows=[str(path)], max_steps=12, logging_steps=1, learning_rate=5e-3)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    batch = seen[0]
    for i, query_id in enumerate(batch.query_ids):
        number = int(query_id[1:])
        assert number < 8  # the row that no teacher scored is left out
        assert sorted(batch.labels[i][batch.where[i]]) == sorted([3.0 + number, 1.0, -2.5, 0.25 * number])


def test_a_dry_run_names_what_the_rows_lack(tiny_model, tiny_collection, tmp_path):
    from retrieval.train_config import TrainConfig

    config = TrainConfig.from_dict(settings(tiny_model, tiny_collection, tmp_path / "run", loss="kl_div"))
    with pytest.raises(InputError, match="positive_scores and negative_scores"):
        dry_run(config)
