"""Whole runs on the tiny collection; those that are killed are in test_training_interrupted.py."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_files import make_tiny_collection, read_jsonl, rows_file
from torch import nn
from training_runs import EACH, Crash, crash_in_step, lines, scripted, settings, weights

import retrieval.objective as objective
import retrieval.training as training
from rankers.losses import build
from retrieval.checkpoints import checkpoint_folder, checkpoint_steps
from retrieval.encoder import Encoder
from retrieval.optimizer import learning_rate
from retrieval.train_config import TrainConfig
from retrieval.training import dry_run, train

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run, whole, tmp_path):
    run("again", gradient_accumulation_steps=2, save_steps=3)
    run("other", gradient_accumulation_steps=2, save_steps=3, seed=1)
    assert weights(tmp_path / "again") == weights(whole)
    assert weights(tmp_path / "other") != weights(whole)
    assert lines(tmp_path / "again") == lines(whole)


def test_settings_that_change_no_weight_change_none(run, whole, tmp_path):
    run(gradient_accumulation_steps=2, save_steps=1, logging_steps=5, save_total_limit=1)
    assert weights(tmp_path / "run") == weights(whole)


def test_validation_changes_no_weight_of_the_steps(run, whole, tmp_path):
    dev = {"eval_strategy": "steps", "eval_steps": 3, "dev_split": "dev", "save_total_limit": 9, "save_steps": 4}
    run(gradient_accumulation_steps=2, **dev)
    kept = checkpoint_folder(tmp_path / "run", 8) / "model.safetensors"
    assert kept.read_bytes() == (checkpoint_folder(whole, 8) / "model.safetensors").read_bytes()


def test_corrupting_the_test_judgements_changes_no_byte(run, tiny_collection, tmp_path):
    data = make_tiny_collection(tmp_path / "data")
    dev = {"eval_strategy": "epoch", "max_steps": 5}
    run("one", data=str(data), **dev)
    path = data / "qrels" / "test.tsv"
    path.write_text(path.read_text().replace("\t3\n", "\t0\n"))
    run("two", data=str(data), **dev)
    path.write_text("no judgements\nat all")
    run("three", data=str(data), **dev)
    path.unlink()
    run("four", data=str(data), **dev)
    assert len({weights(tmp_path / name) for name in ("one", "two", "three", "four")}) == 1
    assert lines(tmp_path / "one") == lines(tmp_path / "three")


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("step", range(1, 9))
def test_a_crash_in_any_step_and_resume_give_the_bytes_of_an_uninterrupted_run(
    run, whole, tmp_path, monkeypatch, step, halfway
):
    changes = {"gradient_accumulation_steps": 2, "save_steps": 3}
    with monkeypatch.context() as patch:
        crash_in_step(patch, step, halfway=halfway)
        with pytest.raises(Crash):
            run(**changes)
    assert checkpoint_steps(tmp_path / "run") == [s for s in (3, 6) if s < step]
    run(resume=True, **changes)
    assert weights(tmp_path / "run") == weights(whole)
    assert lines(tmp_path / "run") == lines(whole)


def test_resume_goes_on_across_epochs_with_validation_and_early_stopping(run, tmp_path, monkeypatch):
    # 5 steps an epoch; validated by every step; early stopping looks at what a checkpoint remembers
    changes = {
        "max_steps": 14,
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "early_stopping_patience": 3,
        "learning_rate": 0.02,
    }
    whole = run("whole", **changes)
    assert whole.best_step < whole.steps < 14
    for step in range(1, whole.steps + 1):
        with monkeypatch.context() as patch:
            crash_in_step(patch, step)
            with pytest.raises(Crash):
                run(f"cut{step}", **changes)
        assert run(f"cut{step}", resume=True, **changes) == replace(whole, out=tmp_path / f"cut{step}")
        assert weights(tmp_path / f"cut{step}") == weights(tmp_path / "whole")
        assert lines(tmp_path / f"cut{step}") == lines(tmp_path / "whole")
        shutil.rmtree(tmp_path / f"cut{step}")


def test_a_signal_in_the_loop_saves_the_step_and_is_delivered(run, whole, tmp_path, monkeypatch):
    backward, taken = objective.backward, []

    def signalled(*arguments, **how):
        taken.append(1)
        if len(taken) == 4:
            signal.raise_signal(signal.SIGINT)
        return backward(*arguments, **how)

    changes = {"gradient_accumulation_steps": 2, "save_steps": 3}
    with monkeypatch.context() as patch:
        patch.setattr(objective, "backward", signalled)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run(**changes)
        finally:
            signal.signal(signal.SIGINT, before)
    assert checkpoint_steps(tmp_path / "run") == [3, 4]
    run(resume=True, **changes)
    assert weights(tmp_path / "run") == weights(whole)


def test_the_configuration_that_a_run_leaves_gives_the_same_bytes(run, tmp_path):
    changes = {
        "loss": "bixse",
        "loss__scale": 12.5,
        "query_prompt": "query: ",
        "query_max_length": 9,
        "warmup_ratio": 0.3,
    }
    run("one", max_steps=3, **changes)
    values = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    train(TrainConfig.from_dict(values | {"out": str(tmp_path / "two")}))
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


def test_keywords_win_over_a_given_configuration(tiny_model, tiny_collection, tmp_path):
    config = TrainConfig.from_dict(settings(tiny_model, tiny_collection, tmp_path / "a"))
    assert train(config, max_steps=1, out=str(tmp_path / "b")).steps == 1
    assert not (tmp_path / "a").exists()


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("infonce", {}),
        ("infonce", {"loss__symmetric": True, "num_positives": 2}),
        ("infonce", {"loss__positive_from": 3}),
        ("bixse", {}),
        ("mw", {}),
        ("sl_at_k", {}),
        ("decoupled_softmax", {"num_positives": 3}),
        ("softmax_ce", {"num_positives": 3}),
    ],
)
def test_every_loss_trains(run, tmp_path, loss, changes):
    run(loss=loss, max_steps=40, per_device_train_batch_size=12, logging_steps=1, learning_rate=5e-3, **changes)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 40
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:3])


def test_graded_labels_are_probabilities_for_bixse_and_grades_for_softmax_ce(run, monkeypatch):
    seen = []
    backward = objective.backward

    def watching(encoder, loss, batches, **how):
        seen.extend(b.batch.labels for b in batches)
        return backward(encoder, loss, batches, **how)

    monkeypatch.setattr(objective, "backward", watching)
    run("one", loss="bixse", max_steps=2, num_positives=3)
    run("two", loss="softmax_ce", max_steps=2, num_positives=3)
    values = [set(np.unique(np.concatenate([m.ravel() for m in part]))) for part in (seen[:2], seen[2:])]
    assert values[0] == {np.float32(0), np.float32(1) / 3, np.float32(2) / 3, np.float32(1)}
    assert values[1] == {0, 1, 2, 3}


def test_learned_settings_of_a_loss_are_trained_saved_and_resumed(run, tmp_path, monkeypatch):
    def learned(config):
        return build("bixse", scale=nn.Parameter(torch.tensor(10.0)), bias=nn.Parameter(torch.tensor(-2.0)))

    monkeypatch.setattr(training, "build_loss", learned)
    run("whole", loss="bixse", save_steps=3)
    found = load_file(checkpoint_folder(tmp_path / "whole", 8) / "loss.safetensors")
    assert {name: float(value) for name, value in found.items()} != {"learned.scale": 10.0, "learned.bias": -2.0}
    with monkeypatch.context() as patch:
        crash_in_step(patch, 5)
        with pytest.raises(Crash):
            run("cut", loss="bixse", save_steps=3)
    run("cut", loss="bixse", save_steps=3, resume=True)
    for name in ("loss.safetensors", "model.safetensors"):
        one, other = (checkpoint_folder(tmp_path / n, 8) / name for n in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()


# --- what a run does --------------------------------------------------------------------------------------------------


def test_metrics_are_what_happened(run, whole):
    found = read_jsonl(whole / "metrics.jsonl")
    assert [line["step"] for line in found] == [2, 4, 6, 8]
    config = TrainConfig.from_dict(yaml.safe_load((whole / "config.yaml").read_text()))
    assert [line["learning_rate"] for line in found] == [learning_rate(s - 1, 8, config) for s in (2, 4, 6, 8)]
    # 36 rows in batches of 8, two a step: 3 steps an epoch
    assert [line["epoch"] for line in found] == [round(s / 3, 4) for s in (2, 4, 6, 8)]
    for line in found:
        assert {"loss", "grad_norm", "pairs_per_second"} <= line.keys()
        assert {"duplicate_document", "duplicate_text", "duplicate_query", "relevant_masked"} <= line.keys()
    assert found[-1]["relevant_masked"] > found[0]["relevant_masked"] > 0
    assert json.loads((whole / "result.json").read_text())["causes"]["relevant_masked"] == found[-1]["relevant_masked"]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": -1}, 5),
        ({"max_steps": -1, "num_train_epochs": 2.0}, 10),
        ({"max_steps": -1, "num_train_epochs": 0.5}, 3),
        ({"max_steps": -1, "num_train_epochs": 0.001}, 1),
        ({"max_steps": -1, "gradient_accumulation_steps": 3}, 2),
        ({"max_steps": 7, "num_train_epochs": 1.0}, 7),
    ],
)
def test_steps_are_counted_in_epochs_or_given(tiny_model, tiny_collection, tmp_path, changes, steps):
    config = TrainConfig.from_dict(settings(tiny_model, tiny_collection, tmp_path / "run", **changes))
    assert dry_run(config) == steps
    assert not (tmp_path / "run").exists()


def test_the_best_model_is_kept_and_published(run, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.2, 0.4, 0.3, 0.4])
    result = run(**EACH)
    assert (result.best_step, result.steps) == (2, 8)
    assert result.dev["best_pool_nDCG@10"] == 0.4
    assert checkpoint_steps(tmp_path / "run") == [2, 8]
    assert weights(tmp_path / "run") != (checkpoint_folder(tmp_path / "run", 8) / "model.safetensors").read_bytes()
    published = load_file(tmp_path / "run" / "model" / "model.safetensors")
    best = load_file(checkpoint_folder(tmp_path / "run", 2) / "model.safetensors")
    assert {n.rpartition("model.")[2]: v.sum().item() for n, v in best.items()} == {
        n: v.sum().item() for n, v in published.items()
    }


def test_validation_stops_a_run_that_no_longer_gets_better(run, monkeypatch):
    calls = scripted(monkeypatch, [0.1, 0.5, 0.3, 0.6, 0.2, 0.2, 0.2])
    result = run(early_stopping_patience=2, eval_full=False, **EACH)
    assert (result.steps, result.best_step) == (5, 3)
    assert len(calls) == 6  # step 0 and five more


def test_a_run_that_never_beats_the_start_publishes_the_start(run, tmp_path, monkeypatch, caplog, tiny_model):
    scripted(monkeypatch, [0.5, 0.4])
    result = run(**EACH)
    assert result.best_step == 0
    assert "no validation beat the start model, which therefore is what model/ holds" in caplog.text
    start = load_file(Path(tiny_model) / "model.safetensors")
    assert all(torch.equal(start[n], v) for n, v in load_file(tmp_path / "run/model/model.safetensors").items())


@pytest.mark.parametrize(
    ("changes", "validated"),
    [
        ({"eval_strategy": "no"}, []),
        ({"eval_strategy": "epoch", "max_steps": 8}, [0, 5, 8]),
        ({"eval_strategy": "epoch", "max_steps": 10}, [0, 5, 10]),
        ({"eval_strategy": "steps", "eval_steps": 3, "max_steps": 8}, [0, 3, 6, 8]),
        ({"eval_strategy": "steps", "eval_steps": 500, "max_steps": 8}, [0, 8]),
    ],
)
def test_validation_comes_when_it_is_due(run, tmp_path, monkeypatch, changes, validated):
    scripted(monkeypatch, [0.1])
    run(eval_full=False, **changes)
    found = [line["step"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "dev_pool_nDCG@10" in line]
    assert found == validated


def test_best_and_last_are_measured_on_the_full_corpus_under_another_name(run, tmp_path):
    result = run(max_steps=10, eval_strategy="epoch", learning_rate=5e-3)
    names = {name for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") for name in line if name.startswith("dev")}
    assert {"dev_pool_nDCG@10", "dev_last_full_nDCG@10"} <= names
    assert set(result.dev) == {"best_pool_nDCG@10", "last_full_nDCG@10", "best_full_nDCG@10"}
    from retrieval.collection import Collection
    from retrieval.validation import full_score

    collection = Collection(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"])
    encoder = Encoder.load(str(tmp_path / "run"), precision="fp32", device="cpu")
    again = full_score(encoder, collection.corpus, collection.queries("dev"), collection.qrels("dev"))
    assert again == pytest.approx(result.dev["best_full_nDCG@10"], abs=1e-6)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["dev"] == result.dev


def test_training_on_the_collection_makes_it_better(run):
    before = run("start", max_steps=1, learning_rate=1e-12, eval_strategy="epoch").dev["best_full_nDCG@10"]
    after = run("trained", max_steps=60, learning_rate=5e-3, eval_strategy="epoch").dev["best_full_nDCG@10"]
    assert after > before + 0.05


def test_rows_of_texts_alone_and_no_judgements(run, tmp_path):
    rows = [
        {
            "query": f"tell me about thing {i}",
            "positives": [f"thing {i} is a {w}"],
            "negatives": ["nothing", "no thing"][: i % 3],
        }
        for i, w in enumerate(("river", "tree", "machine", "fruit", "seat"))
    ]
    path = rows_file(tmp_path / "rows.jsonl", rows)
    result = run(rows=[str(path)], max_steps=4, per_device_train_batch_size=2)
    assert result.steps == 4


def test_static_embeddings_can_be_trained(run, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = "[UNK] the otter heron maple river tree bird what is where found does need tell me all about"
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words.split())}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    static = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"), create_model_card=False)
    run("one", model=str(tmp_path / "static"), learning_rate=0.05, max_steps=20, logging_steps=1)
    run("two", model=str(tmp_path / "static"), learning_rate=0.05, max_steps=20, logging_steps=1)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "one" / "metrics.jsonl")]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_bf16_trains_deterministically_and_keeps_float32_weights(run, tmp_path):
    run("one", precision="bf16", max_steps=3)
    run("two", precision="bf16", max_steps=3)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert {v.dtype for v in load_file(tmp_path / "one/model/model.safetensors").values()} == {torch.float32}


# --- the model --------------------------------------------------------------------------------------------------------


def test_plain_sentence_transformers_loads_the_model_and_encodes_alike(run, tmp_path):
    from sentence_transformers import SentenceTransformer

    run(query_prompt="query: ", document_prompt="passage: ", query_max_length=7, document_max_length=21, max_steps=3)
    folder = tmp_path / "run" / "model"
    texts = [
        "otter",
        "",
        "What is a slow river of packed ice, and where is it found?",
        "the " * 90,
        "日本語 and émigré",
    ]
    plain = SentenceTransformer(str(folder), device="cpu")
    ours = Encoder.load(str(tmp_path / "run"), precision="fp32", device="cpu")
    np.testing.assert_allclose(plain.encode_query(texts), ours.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(plain.encode_document(texts), ours.encode_document(texts), atol=1e-6)
    assert not np.allclose(plain.encode_query(texts), plain.encode_document(texts), atol=1e-3)
    assert "# A dual encoder trained with Rankwright" in (folder / "README.md").read_text()
