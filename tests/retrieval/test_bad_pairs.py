"""The memory of losses, who is flagged, weights, and the report."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.bad_pairs import LossMemory, flagged_rows, judged, pair_weights, write_flagged
from retrieval.collection import Collection
from retrieval.errors import InputError
from retrieval.rows import TrainingRow

LOSSES = st.lists(st.lists(st.floats(0, 10), min_size=5, max_size=5), min_size=1, max_size=4)


def filled(losses, epochs=None):
    """Return the memory of losses[epoch][row]."""
    memory = LossMemory(len(losses[0]), epochs or len(losses))
    for epoch, values in enumerate(losses):
        memory.add(np.arange(len(values)), values, epoch)
    return memory


def rows(n):
    return [TrainingRow(query_id=f"q{i}", query=f"query {i}", positives=(f"text\tof\n{i}",)) for i in range(n)]


@given(LOSSES, st.integers(0, 3))
def test_means_are_the_formula(losses, later):
    epochs = len(losses) + later
    expected = [np.mean([losses[e][i] * (e + 1) / epochs for e in range(len(losses))]) for i in range(5)]
    np.testing.assert_allclose(filled(losses, epochs).means(), expected, atol=1e-12)


@given(LOSSES, st.integers(1, 5))
def test_the_order_of_batches_and_a_resume_change_nothing(losses, size):
    whole, parts = filled(losses), LossMemory(5, len(losses))
    for epoch, values in enumerate(losses):
        order = np.random.default_rng(epoch).permutation(5)
        for start in range(0, 5, size):
            numbers = order[start : start + size]
            parts.add(numbers, np.array(values)[numbers], epoch)
            resumed = LossMemory(5, len(losses))
            resumed.load({name: array.copy() for name, array in parts.state().items()})
            parts = resumed
    np.testing.assert_array_equal(parts.means(), whole.means())
    np.testing.assert_array_equal(parts.last, whole.last)


def test_what_a_row_missed_does_not_change_how_it_compares():
    memory = LossMemory(3, 4)
    memory.add([0, 1], [1.0, 1.0], 0)
    memory.add([0, 0], [2.0, 4.0], 1)  # twice in one epoch
    own = [(1 * 1 + 2 * 2 + 2 * 4) / (1 + 2 + 2), 1.0, np.nan]
    np.testing.assert_allclose(memory.means(), np.array(own) * np.mean([1 / 4, 2 / 4]))
    np.testing.assert_array_equal(memory.last, [4, 1, np.nan])


def test_a_state_is_a_copy():
    memory = filled([[1.0, 2.0]])
    state = memory.state()
    memory.add([0], [9.0], 0)
    assert state["last"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("numbers", "losses", "epoch", "message"),
    [
        ([0, 1], [1.0], 0, r"row_numbers \(2,\) and losses \(1,\) must have the same shape"),
        ([2], [1.0], 0, "must be whole numbers from 0 to 1"),
        ([-1], [1.0], 0, "must be whole numbers from 0 to 1"),
        ([0.5], [1.0], 0, "must be whole numbers"),
        ([0], [1.0], 3, "epoch must be from 0 to 2, got 3"),
        ([0, 1], [1.0, math.inf], 0, "the loss of row 1 is not finite"),
    ],
)
def test_a_bad_batch_is_refused_and_leaves_no_trace(numbers, losses, epoch, message):
    memory = LossMemory(2, 3)
    with pytest.raises(ValueError, match=message):
        memory.add(numbers, losses, epoch)
    assert np.isnan(memory.means()).all()
    memory.add([], [], 0)  # an empty batch is none


def test_another_runs_state_is_refused():
    memory = LossMemory(2, 3)
    with pytest.raises(ValueError, match="the state is of 5 rows and 1 epochs, the run has 2 rows and 3 epochs"):
        memory.load(filled([[1.0] * 5]).state())
    with pytest.raises(ValueError, match="the state of a loss memory lacks epochs, sums"):
        memory.load({"weights": np.zeros(2), "last": np.zeros(2)})
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        LossMemory(0, 3)


# --- who is flagged --------------------------------------------------------------------------------------------------


def test_flags_by_hand():
    losses = [1.0] * 8 + [0.0, 2.0]  # mean 1, variance 2 / 10
    spread = math.sqrt(0.2)
    found = judged(filled([losses]), noisy_from=1 / spread - 1e-9, faulty_from=1 / spread - 1e-9)
    assert (found.centre, found.spread) == pytest.approx((1, spread))
    assert (np.flatnonzero(found.noisy).tolist(), np.flatnonzero(found.faulty).tolist()) == ([8], [9])
    np.testing.assert_allclose(found.deviations()[[0, 8, 9]], [0, -1 / spread, 1 / spread])
    nobody = judged(filled([losses]), noisy_from=1 / spread + 1e-9, faulty_from=1 / spread + 1e-9)
    assert not (nobody.noisy | nobody.faulty).any()


def test_shuffled_pairs_are_found_among_sound_ones():
    random = np.random.default_rng(0)
    shuffled = random.random(2000) < 0.05
    memory = LossMemory(2000, 3)
    for epoch in range(3):
        memory.add(np.arange(2000), random.exponential(np.where(shuffled, 4.0, 0.4)), epoch)
    faulty = judged(memory).faulty
    assert shuffled[faulty].mean() > 0.9
    assert faulty[shuffled].mean() > 0.5


@pytest.mark.slow
def test_exchanged_positives_of_scifact_are_found(shared, wordllama):
    import torch
    from torch.nn.functional import cross_entropy, normalize

    from retrieval.bench_data import exchange_positives
    from retrieval.encoder import Encoder

    collection, encoder = Collection.load(shared / "data" / "scifact"), Encoder.load(wordllama)
    clean, texts, corpus = collection.qrels("train"), collection.queries("train"), collection.corpus
    noisy = exchange_positives(clean, list(corpus.ids), 0.05)
    pairs = [(query_id, next(doc_id for doc_id in noisy[query_id])) for query_id in texts]
    wrong = np.array([doc_id not in clean[query_id] for query_id, doc_id in pairs])
    queries = torch.from_numpy(encoder.encode_query([texts[query_id] for query_id, _ in pairs]))
    documents = torch.from_numpy(encoder.encode_document([corpus.text(corpus.row(doc_id)) for _, doc_id in pairs]))
    names, weight = np.array([doc_id for _, doc_id in pairs]), torch.eye(queries.shape[1], requires_grad=True)
    memory, optimizer = LossMemory(len(pairs), 3), torch.optim.AdamW([weight], lr=1e-3)
    for epoch in range(3):
        for numbers in np.array_split(np.random.default_rng(epoch).permutation(len(pairs)), len(pairs) // 32):
            same = (names[numbers][:, None] == names[numbers]) & ~np.eye(len(numbers), dtype=bool)
            scores = normalize(queries[numbers] @ weight.T) @ normalize(documents[numbers] @ weight.T).T / 0.05
            scores = scores.masked_fill(torch.from_numpy(same), -torch.inf)
            losses = cross_entropy(scores, torch.arange(len(numbers)), reduction="none")
            memory.add(numbers, losses.detach().numpy(), epoch)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    faulty = judged(memory).faulty
    assert wrong[faulty].mean() > 8 * wrong.mean()  # 6 % of all pairs are wrong
    assert faulty[wrong].mean() > 0.25


@pytest.mark.parametrize("losses", [[2.0, 2.0, 2.0], [3.0]])
def test_rows_that_all_cost_the_same_are_not_flagged(losses):
    memory = filled([losses])
    found = judged(memory, noisy_from=0.1, faulty_from=0.1)
    assert not (found.noisy | found.faulty).any()
    assert found.deviations().tolist() == [0] * len(losses)
    np.testing.assert_array_equal(pair_weights(found, memory.last), 1)


def test_rows_never_seen_are_not_flagged():
    found = judged(LossMemory(3, 1), noisy_from=0.1, faulty_from=0.1)
    assert not (found.noisy | found.faulty).any()


@pytest.mark.parametrize("name", ["noisy_from", "faulty_from"])
def test_a_threshold_must_be_positive(name):
    with pytest.raises(InputError, match=f"{name} must be above 0 standard deviations, got 0"):
        judged(filled([[1.0, 2.0]]), **{name: 0})


@given(st.lists(st.floats(0, 10), min_size=3, max_size=20), st.data())
def test_weights_are_the_density_for_flagged_rows_alone(losses, data):
    current = data.draw(st.lists(st.floats(0, 10), min_size=len(losses), max_size=len(losses)))
    found = judged(filled([losses]), noisy_from=1, faulty_from=1)
    flagged = found.noisy | found.faulty
    relative, density = pair_weights(found, current), pair_weights(found, current, relative=False)
    assert ((relative >= 0) & (relative <= 1)).all()
    assert (relative[~flagged] == 1).all()
    if flagged.any():
        best = 1 / (found.spread * math.sqrt(2 * math.pi))
        np.testing.assert_allclose(density[flagged], relative[flagged] * best)
        expected = np.exp(-0.5 * ((np.array(current)[flagged] - found.centre) / found.spread) ** 2)
        np.testing.assert_allclose(relative[flagged], expected)


def test_weights_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"got losses of shape \(2,\) for 3 rows"):
        pair_weights(judged(filled([[1.0, 2.0, 3.0]])), [1.0, 2.0])


# --- the report ------------------------------------------------------------------------------------------------------


def report(memory, n=10):
    return flagged_rows(memory, rows(n), noisy_from=1.5, faulty_from=2)


def test_the_report_is_read_again(tmp_path):
    flagged = report(filled([[1.0] * 8 + [0.0, 2.2]], epochs=2))
    assert [(one.row, one.verdict, one.query_id) for one in flagged] == [(9, "faulty", "q9"), (8, "noisy", "q8")]
    assert flagged[0].positive == "text of 9"
    write_flagged(tmp_path / "bad.tsv", flagged)
    head, first, second = (line.split("\t") for line in (tmp_path / "bad.tsv").read_text().splitlines())
    assert dict(zip(head, first, strict=True)) == {
        "verdict": "faulty", "deviations": f"{flagged[0].deviations:+.2f}", "mean_loss": "1.1", "last_loss": "2.2",
        "row": "9", "query_id": "q9", "query": "query 9", "positive_ids": "", "positive": "text of 9",
    }  # fmt: skip
    assert (second[0], second[1][0]) == ("noisy", "-")
    write_flagged(tmp_path / "bad.jsonl", flagged)
    records = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [record["deviations"] for record in records] == [one.deviations for one in flagged]


def test_without_a_flag_there_is_the_head_alone(tmp_path):
    write_flagged(tmp_path / "bad.tsv", report(filled([[1.0] * 10])))
    assert (tmp_path / "bad.tsv").read_text().startswith("verdict\tdeviations\t")
    assert len((tmp_path / "bad.tsv").read_text().splitlines()) == 1


def test_texts_come_from_the_corpus_and_are_cut(tiny_collection):
    corpus = Collection.load(tiny_collection).corpus
    some = [TrainingRow(query_id=f"q{i}", query="why " * 200, positive_ids=("otter-0", "otter-1")) for i in range(6)]
    memory = filled([[0.0] * 5 + [5.0]])
    (one,) = flagged_rows(memory, some, corpus, faulty_from=2)
    assert one.positive == corpus.text(corpus.row("otter-0"))
    assert one.positive_ids == ("otter-0", "otter-1")
    assert (len(one.query), one.query[-1]) == (301, "…")
    assert flagged_rows(memory, some, faulty_from=2)[0].positive == ""


def test_other_endings_and_other_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"bad.csv: ends in '.csv'; wanted .tsv or .jsonl"):
        write_flagged(tmp_path / "bad.csv", [])
    with pytest.raises(ValueError, match="got 3 rows for a memory of 10"):
        report(filled([[1.0] * 10]), n=3)
