"""Runs with hard batches and hard negatives: what they do between steps, and that a cut changes no byte of it."""

import itertools
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_files import make_tiny_collection, read_jsonl
from training_runs import Crash, crash_in_step, lines, settings, weights

from retrieval.checkpoints import checkpoint_folder, load_arrays
from retrieval.errors import InputError
from retrieval.hard_examples import HardExamples
from retrieval.objective import build_loss
from retrieval.refreshed_negatives import RefreshedNegatives
from retrieval.train_config import TrainConfig
from retrieval.training import DualEncoderTask, dry_run, train

pytestmark = pytest.mark.usefixtures("one_thread")

PROXY = {"batching": "proxy", "proxy_dim": 8}
CLUSTER = {"batching": "cluster", "clusters": 4}
REFRESHED = {
    "refresh_every": 3,
    "refresh_range": "1:20",
    "refresh_depth": 20,
    "refresh_relative_margin": None,  # a random model has all texts near one another
    "num_negatives": 2,
}
EVERYTHING = PROXY | REFRESHED | {"find_bad_pairs": True, "hardness": "0:1"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tiny_model, tiny_collection, tmp_path):
    def go(name="run", resume=False, **changes):
        values = settings(tiny_model, tiny_collection, tmp_path / name, **{"max_steps": 20, **changes})
        return train(TrainConfig.from_dict(values), resume=resume)

    return go


def losses(out):
    return [line["loss"] for line in lines(out) if "loss" in line]


def begun(task):
    """The task as it is before its first step."""
    task.hard.before(0, 100, task.steps_per_epoch, 1)
    return task


@pytest.fixture
def task(tiny_model, tiny_collection, tmp_path):
    def make(**changes):
        config = TrainConfig.from_dict(settings(tiny_model, tiny_collection, tmp_path / "none", **changes))
        return DualEncoderTask(config, build_loss(config))

    return make


# --- exact resume -----------------------------------------------------------------------------------------------------


HOW = {
    "proxy": PROXY | {"gradient_accumulation_steps": 2, "chunk_size": 5, "sam_rho": 0.05},
    "cluster": CLUSTER,
    "refreshed": REFRESHED,
    "everything": EVERYTHING,
}


@pytest.mark.parametrize(
    ("what", "step"),
    # in the random epoch, at the border, after it, after refreshes; of two gradients a step with SAM
    [("everything", 2), ("everything", 9), ("everything", 17), ("proxy", 12), ("cluster", 11), ("refreshed", 11)],
)
def test_a_cut_run_ends_with_the_same_bytes(run, tmp_path, monkeypatch, what, step):
    how = HOW[what]
    run("whole", save_steps=1, **how)
    with monkeypatch.context() as patch:
        crash_in_step(patch, step)
        with pytest.raises(Crash):
            run("cut", save_steps=1, **how)
    run("cut", resume=True, save_steps=1, **how)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    kept = [load_arrays(checkpoint_folder(tmp_path / name, 20)) for name in ("cut", "whole")]
    assert kept[0].keys() == kept[1].keys()
    for name, array in kept[0].items():
        np.testing.assert_array_equal(array, kept[1][name], err_msg=name)
    plain = [[line for line in lines(tmp_path / n) if "loss" in line] for n in ("cut", "whole")]
    assert plain[0] == plain[1]


@pytest.mark.parametrize("what", ["cluster", "refreshed"])
def test_what_needs_the_start_model_is_kept_and_not_done_again(run, tmp_path, monkeypatch, what):
    """Other threads or an emptied cache would give other clusters, other candidates."""
    with monkeypatch.context() as patch:
        crash_in_step(patch, 3)
        with pytest.raises(Crash):
            run("cut", save_steps=1, **HOW[what])
    monkeypatch.setattr(HardExamples, "_clusters_of_rows", lambda self: pytest.fail("clustered again"))
    monkeypatch.setattr(RefreshedNegatives, "begin", lambda self: pytest.fail("searched again"))
    run("cut", resume=True, save_steps=1, **HOW[what])


def test_checkpoints_between_two_pauses_are_enough(run, tmp_path, monkeypatch):
    """The last checkpoint lies in the middle of an epoch by proxies and between two refreshes."""
    run("whole", save_steps=13, **EVERYTHING)
    with monkeypatch.context() as patch:
        crash_in_step(patch, 16)
        with pytest.raises(Crash):
            run("cut", save_steps=13, **EVERYTHING)
    run("cut", resume=True, save_steps=13, **EVERYTHING)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert (tmp_path / "cut" / "bad_pairs.tsv").read_bytes() == (tmp_path / "whole" / "bad_pairs.tsv").read_bytes()


# --- proxies ----------------------------------------------------------------------------------------------------------


def test_a_branch_of_no_weight_leaves_the_first_epoch_as_it_is(run, tmp_path):
    run("plain", max_steps=5, logging_steps=1)
    run("proxies", max_steps=5, proxy_weight=0, logging_steps=1, **PROXY)
    run("weighted", max_steps=5, logging_steps=1, **PROXY)
    plain, proxies, weighted = (losses(tmp_path / name) for name in ("plain", "proxies", "weighted"))
    assert proxies == pytest.approx(plain, rel=1e-4)
    assert weighted[0] > 1.5 * plain[0]  # the same loss twice, over embeddings and over proxies


def test_the_second_epoch_is_drawn_by_what_the_first_one_added_up(run, tmp_path):
    run(logging_steps=1, max_steps=12, save_steps=1, save_total_limit=20, **PROXY)
    told = [line for line in lines(tmp_path / "run") if "likeness_1" in line]
    in_epoch = 5
    assert [line["step"] for line in told] == [in_epoch, 2 * in_epoch]  # the borders
    assert max(told[0][f"likeness_{i}"] for i in (1, 2, 3)) > told[0]["likeness_random"]  # an anchor may lie far out
    before = load_arrays(checkpoint_folder(tmp_path / "run", in_epoch))
    after = load_arrays(checkpoint_folder(tmp_path / "run", in_epoch + 1))
    assert not before["proxies"].any()
    sums = before["proxy_sums"]
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(after["proxies"], expected, atol=1e-3)
    assert np.abs(after["proxy_sums"]).sum() < np.abs(sums).sum()  # begun again


def test_the_published_model_knows_nothing_of_proxies(run, tmp_path):
    from safetensors.numpy import load_file

    run(max_steps=2, **PROXY)
    names = load_file(tmp_path / "run" / "model" / "model.safetensors").keys()
    assert not [name for name in names if "prox" in name]


def test_chunks_and_proxies_go_together(run, tmp_path):
    run("plain", max_steps=12, logging_steps=1, **PROXY)
    run("chunks", max_steps=12, logging_steps=1, chunk_size=1_000, **PROXY)
    one, other = (losses(tmp_path / name) for name in ("plain", "chunks"))
    assert other[:9] == pytest.approx(one[:9], rel=1e-3)


# --- negatives that are mined again -----------------------------------------------------------------------------------


def test_refreshed_negatives_are_never_relevant_and_come_from_the_corpus(task):
    found = begun(task(**REFRESHED))
    rows = found.batcher.rows
    assert all(len(row.negative_ids) == 2 for row in rows)
    first = [row.negative_ids for row in rows]
    for row in rows:
        judged = found.data.judgements[row.query_id]
        assert not [doc_id for doc_id in row.negative_ids if judged.get(doc_id, 0) > 0 or doc_id in row.positive_ids]
    found.hard._refreshed.refresh(range(len(rows)), 3)
    assert [row.negative_ids for row in rows] != first  # the same model, another draw


@pytest.mark.parametrize("depth", [0, 20])
def test_the_top_negatives_are_the_best_permitted_documents(task, depth):
    """By hand: the two best documents that are neither relevant nor nearer than the margin allows."""
    found = begun(task(**REFRESHED | {"refresh_depth": depth, "refresh_sampling": "top"}))
    found.hard._refreshed.refresh([0, 5], 3)
    corpus = found.data.collection.corpus
    documents = found.encoder.encode_document(corpus.texts(range(len(corpus))))
    for number in (0, 5, 7):
        row = found.batcher.rows[number]
        relevant = {d for d, grade in found.data.judgements[row.query_id].items() if grade > 0}
        taken = {corpus.text(corpus.row(doc_id)) for doc_id in relevant} | {row.query}
        (query,) = found.encoder.encode_query([row.query])
        best = []
        for place in np.argsort(-(documents @ query), kind="stable"):
            text = corpus.text(int(place))
            if text not in taken:
                best.append(corpus.ids[int(place)])
                taken.add(text)
        assert set(row.negative_ids) == set(best[:2])


def test_only_what_is_due_is_mined_and_encoded_again(task, monkeypatch):
    """An epoch is 5 steps: of 3 to 5 two are left of it, and one belongs to the next."""
    found = begun(task(**REFRESHED, max_steps=20))
    encoded = []
    encode = found.encoder.encode_document
    monkeypatch.setattr(found.encoder, "encode_document", lambda texts: encoded.append(len(texts)) or encode(texts))
    before = [row.negative_ids for row in found.batcher.rows]
    found.hard.before(3, 20, found.steps_per_epoch, 1)
    due = {int(n) for batch in [*found.batcher.epoch(0)[3:], found.batcher.epoch(1)[0]] for n in batch}
    changed = {i for i, row in enumerate(found.batcher.rows) if row.negative_ids != before[i]}
    assert changed
    assert changed <= due
    refreshed = found.hard._refreshed
    assert encoded == [len(set(np.concatenate([refreshed._candidates[i] for i in due]).tolist()))]


def test_nothing_is_mined_for_steps_that_are_never_taken(task, monkeypatch):
    found = begun(task(**REFRESHED, max_steps=4))
    mined = []
    monkeypatch.setattr(RefreshedNegatives, "refresh", lambda self, numbers, step: mined.append(sorted(numbers)))
    found.hard.before(3, 4, found.steps_per_epoch, 1)
    assert mined == [sorted(found.batcher.epoch(0)[3].tolist())]


def test_each_pause_tells_its_own_seconds(task, monkeypatch):
    """A sum would begin anew after a resume."""
    ticks = itertools.count()
    monkeypatch.setattr("retrieval.hard_examples.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    found = begun(task(**REFRESHED))
    assert found.hard.news() == {"pause_seconds": 1.0}
    found.hard.before(3, 100, found.steps_per_epoch, 1)
    assert found.hard.news() == {"pause_seconds": 1.0}


@pytest.mark.parametrize("brings_text", [False, True])
def test_what_the_model_cannot_tell_from_a_positive_is_no_negative_after_a_refresh_either(task, tmp_path, brings_text):
    """Equal in all tokens that are read, and first of all in a search; no margin keeps it out."""
    data = make_tiny_collection(tmp_path / "twins")
    corpus = read_jsonl(data / "corpus.jsonl")
    head = " ".join(["berry"] * 40)
    twins = [{"_id": f"twin {i}", "title": "", "text": f"{head} {i}"} for i in range(2)]
    (data / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in corpus + twins))
    given = {"positives": [f"{head} given"]} if brings_text else {"positive_ids": ["twin 0"]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"query": f"berry {i}", **given}) + "\n" for i in range(8)))
    how = REFRESHED | {"refresh_depth": 0, "refresh_range": "1:100", "num_negatives": len(corpus) + 1}
    found = begun(task(**how, data=str(data), rows=[str(path)], document_max_length=8))
    found.hard._refreshed.refresh(range(8), 3)
    for row in found.batcher.rows:
        assert row.negative_ids
        assert not [doc_id for doc_id in row.negative_ids if doc_id.startswith("twin")]


def test_the_store_spares_the_second_run_the_first_search(task, monkeypatch):
    begun(task(**REFRESHED))
    second = task(**REFRESHED)
    monkeypatch.setattr(second.encoder, "encode_blocks", lambda *a, **k: pytest.fail("encoded again"))
    begun(second)


def test_rows_that_bring_texts_get_a_margin_too(task, tmp_path):
    rows = [
        {"query": f"words of question {i}", "positives": [f"an answer to {i}"], "negatives": ["given"]}
        for i in range(9)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = REFRESHED | {"refresh_relative_margin": 0.0, "rows": [str(path)]}
    found = begun(task(**how))
    found.hard._refreshed.refresh(range(9), 3)
    encode, corpus = found.encoder.encode_document, found.data.collection.corpus
    for row in found.batcher.rows:
        assert not row.negatives
        (query,) = found.encoder.encode_query([row.query])
        scores = encode([corpus.text(corpus.row(d)) for d in row.negative_ids] or ["nothing"]) @ query
        limit = float((encode(list(row.positives)) @ query)[0])
        assert not row.negative_ids or scores.max() <= limit + 1e-5


def test_rows_without_a_negative_are_told(task, caplog):
    with caplog.at_level(logging.WARNING, logger="retrieval"):
        begun(task(**REFRESHED | {"refresh_relative_margin": 0.9}))
    assert "rows find no negative; a wider refresh_range or a smaller margin would find some" in caplog.text


# --- masks, as ever ---------------------------------------------------------------------------------------------------


def test_a_batch_drawn_by_proxies_masks_what_is_relevant(task):
    """Proxies bring near-duplicates together: what is judged relevant is labelled or masked, a text is one column."""
    found = task(**PROXY)
    bank, groups = found.hard._bank, found.batcher.groups()
    bank.add(np.arange(bank.groups), np.tile(np.eye(8, dtype=np.float32)[:1], (bank.groups, 1)))  # all are alike
    random = np.random.default_rng(0)
    bank.add(np.arange(bank.groups), 0.3 * random.standard_normal((bank.groups, 8)).astype(np.float32))
    bank.close_epoch()
    met = 0
    for numbers in found.batcher.order.drawn(1):
        batch = found.batcher.make(numbers.tolist(), 1)
        assert len(set(batch.documents)) == len(batch.documents)
        texts = {text: column for column, text in enumerate(batch.documents)}
        corpus = found.data.collection.corpus
        for row, query in enumerate(batch.row_query):
            own = found.data.judgements[batch.query_ids[query]]
            relevant = {texts.get(corpus.text(corpus.row(d))) for d, grade in own.items() if grade > 0} - {None}
            met += len(relevant) - 1
            for column in relevant:
                assert batch.labels[row, column] > 0 or not batch.where[row, column]
    assert met > 0
    assert len(groups) == len(found.batcher.rows)


# --- bad pairs --------------------------------------------------------------------------------------------------------


def test_the_memory_has_what_each_row_costs(run, tmp_path):
    run(find_bad_pairs=True, max_steps=10, logging_steps=1, loss__temperature=0.05, num_negatives=0)
    arrays = load_arrays(checkpoint_folder(tmp_path / "run", 10))
    assert np.isfinite(arrays["losses.last"]).sum() > 30
    assert (tmp_path / "run" / "bad_pairs.tsv").read_text().startswith("verdict\t")


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_tells_of_scores_masks_and_embeddings(run, tmp_path):
    run(max_steps=2, logging_steps=1)
    line = lines(tmp_path / "run")[-1]
    names = "chance_loss positive_score negative_score score_std negatives_per_query masked_share accuracy"
    assert {*names.split(), "document_cosine", "effective_rank"} <= line.keys()
    assert 0 <= line["masked_share"] < 1
    assert line["chance_loss"] == pytest.approx(np.log(1 + line["negatives_per_query"]), abs=0.4)
    assert -1 <= line["negative_score"] <= 1
    seconds = [one["seconds"] for one in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_a_run_of_one_epoch_is_told_that_its_batches_are_random(task, caplog):
    for how, told in ((PROXY, True), (CLUSTER, False), (CLUSTER | {"hardness": "0:1"}, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="retrieval"):
            task(max_steps=5, **how)
        assert ("the run has one epoch" in caplog.text) == told
        task(max_steps=6, **how)


def test_batches_of_one_row_are_no_trouble(run, tmp_path):
    rows = [{"query": f"q {i}", "positives": [f"a {i}"], "negatives": [f"n {i}", f"m {i}"]} for i in range(4)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(rows=[str(path)], per_device_train_batch_size=1, max_steps=10, logging_steps=1, **PROXY)
    assert not [line for line in lines(tmp_path / "run") if "likeness_1" in line]


def test_a_dry_run_writes_nothing(tiny_model, tiny_collection, tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.proxies._IN_MEMORY", 3)
    values = settings(tiny_model, tiny_collection, tmp_path / "dry", **PROXY)
    assert dry_run(TrainConfig.from_dict(values)) == 8
    assert not (tmp_path / "dry").exists()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batching": "proxies"}, "unknown batching 'proxies'; did you mean 'proxy'"),
        ({"hardness": "0.5"}, "hardness=0.5 has no meaning for batching=random; take cluster or proxy"),
        ({"batching": "proxy", "hardness": "hard"}, "hardness got 'hard'"),
        ({"batching": "proxy", "hardness": "1.5"}, "hardness '1.5' has a hardness of 1.5"),
        ({"batching": "proxy", "proxy_dim": 0}, "proxy_dim must be >= 1"),
        ({"batching": "proxy", "proxy_weight": -1}, "proxy_weight must be >= 0"),
        ({"batching": "proxy", "loss": "isogclr"}, "batching=proxy: isogclr keeps one state of each query"),
        ({"batching": "cluster", "clusters": 0}, "clusters must be >= 1"),
        ({"refresh_every": -1}, "refresh_every must be >= 0"),
        ({"refresh_every": 5, "num_negatives": 0}, "mines negatives that no step takes"),
        ({"refresh_range": "20:10"}, "refresh: .*20:10"),
        ({"refresh_range": "10"}, "refresh: refresh_range got '10'; wanted the first and the last rank"),
        ({"refresh_sampling": "best"}, "refresh: unknown sampling 'best'"),
        ({"refresh_margin_from": "best"}, "refresh: unknown margin_from 'best'"),
        ({"refresh_relative_margin": 2}, "refresh: relative_margin must be in"),
        ({"refresh_every": 5, "refresh_range": "30:40", "refresh_depth": 20}, "begins below the 20 candidates"),
        ({"clusters": 5}, "clusters=5 has no meaning for batching=random; take cluster"),
        ({"batching": "cluster", "proxy_dim": 9}, "proxy_dim=9 has no meaning for batching=cluster; take proxy"),
    ],
)
def test_impossible_settings_are_one_line(run, changes, message):
    with pytest.raises(InputError, match=message):
        run(**changes)


def test_mining_again_for_a_teacher_s_loss_is_refused(task, tmp_path):
    row = {"query": "q", "positives": ["a"], "negatives": ["n"], "positive_scores": [3], "negative_scores": [1]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="no teacher has scored, and margin_mse reads such scores"):
        task(loss="margin_mse", rows=[str(tmp_path / "rows.jsonl")], **REFRESHED)


def test_settings_survive_the_folder(run, tmp_path):
    run(max_steps=1, batching="cluster", hardness=0.5, clusters=3)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "batching: cluster" in text
    assert json.dumps("0.5") in text or "hardness: '0.5'" in text
