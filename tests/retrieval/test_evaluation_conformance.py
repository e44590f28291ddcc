"""The numbers are those of trec_eval: its own test files, and pytrec_eval on runs made to be difficult."""

import math
import unicodedata

import ir_measures
import numpy as np
import pytest
import pytrec_eval

from retrieval.evaluation import evaluate
from retrieval.trec import ranked, read_qrels, read_run

# trec_eval's name → ours, for every measure that both have.
CUTOFFS = (5, 10, 15, 20, 30, 100, 200, 500, 1000)
SAME = {
    "map": "AP",
    "recip_rank": "RR",
    "ndcg": "nDCG",
    "Rprec": "Rprec",
    "bpref": "Bpref",
    "infAP": "infAP",
    "num_ret": "NumRet",
    "num_rel": "NumRel",
    "num_rel_ret": "NumRelRet",
    "set_P": "SetP",
    "set_relative_P": "SetRelP",
    "set_recall": "SetR",
    "set_map": "SetAP",
    "set_F": "SetF",
    **{f"success_{k}": f"Success@{k}" for k in (1, 5, 10)},
    # At .10 and .60 today's trec_eval rounds recall · relevant documents another way than pytrec_eval's copy of it.
    **{f"iprec_at_recall_{r / 10:.2f}": f"IPrec@{r / 10}" for r in (0, 2, 3, 4, 5, 7, 8, 9, 10)},
    **{
        f"{theirs}_{k}": f"{ours}@{k}"
        for theirs, ours in (("P", "P"), ("recall", "R"), ("ndcg_cut", "nDCG"), ("map_cut", "AP"))
        for k in CUTOFFS
    },
}


def printed(path):
    """Read trec_eval's output: (measure, query or "all") → text."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {(measure, query): value for measure, query, value in rows}


def compare(estimates, names, expected):
    """Count the printed values of `names`, each equal to ours in all printed digits."""
    n = 0
    for (measure, query), text in expected.items():
        if measure not in names:
            continue
        estimate = estimates[names[measure]]
        value = float(estimate) if query == "all" else estimate.per_query[query]
        if "." in text:
            assert f"{value:.4f}" == text, (measure, query)
        else:
            assert value == int(text), (measure, query)
        n += 1
    return n


def test_trec_evals_own_output_is_reproduced(shared):
    folder = shared / "conformance" / "trec_eval"
    qrels, run = read_qrels(folder / "qrels.test"), read_run(folder / "results.test")
    estimates = evaluate(qrels, run, SAME.values(), resamples=10)
    assert compare(estimates, SAME, printed(folder / "out.test.a")) == len(SAME)
    assert compare(estimates, SAME, printed(folder / "out.test.aq")) == 4 * len(SAME)  # three queries and "all"
    # The same through trec_eval's own spellings.
    spelled = {name: name for name in SAME}
    estimates = evaluate(qrels, run, spelled, resamples=10)
    assert compare(estimates, spelled, printed(folder / "out.test.aq")) == 4 * len(SAME)


def test_trec_evals_output_for_a_run_that_lacks_a_query_is_reproduced(shared, tmp_path):
    folder = shared / "conformance" / "trec_eval"
    qrels = read_qrels(folder / "qrels.test")
    # trec_eval takes what follows the tag for reserved; we refuse it, since it is mostly an id with a blank in it.
    with pytest.raises(ValueError, match=r"results.trunc:1: got 9 columns, wanted 6"):
        read_run(folder / "results.trunc")
    lines = (folder / "results.trunc").read_text().splitlines()
    (tmp_path / "trunc").write_text("\n".join("\t".join(line.split()[:6]) for line in lines))
    estimates = evaluate(qrels, read_run(tmp_path / "trunc"), SAME.values(), resamples=10)
    assert {(e.n, e.missing) for e in estimates.values()} == {(3, 1)}
    assert compare(estimates, SAME, printed(folder / "out.test.aqc")) == 4 * len(SAME)


# --- random runs: ties everywhere, ids of all alphabets

ALPHABET = [
    "a",
    "b",
    "Z",
    "0",
    "\u00e9",
    "e\u0301",
    "\u05d0",
    "\u0645",
    "\uff21",
    "\uffee",
    "\U0001d49f",
    "\U0001f469",
    "\u4e2d",
    "-",
    "#",
]
N_QUERIES = 3000


@pytest.fixture(scope="module")
def difficult():
    """3,000 queries with 1 to 25 documents that nearly all tie, many of them only as float32."""
    generator = np.random.default_rng(20260)
    scores = np.array(
        [0.0, -0.0, 1.0, 30.0, 30.0000001, 29.9999999, 0.1, 0.1 + 1e-9, -5.0, 1e-45, 2.0**24, 2.0**24 + 1]
    )
    qrels, run = {}, {}
    for number in range(N_QUERIES):
        query_id = f"q{number}"
        ids = {"".join(generator.choice(ALPHABET, size=generator.integers(1, 4))) for _ in range(25)}
        ids |= {unicodedata.normalize("NFC", doc_id) for doc_id in ids}
        ids = generator.permutation(sorted(ids)).tolist()
        retrieved = ids[: generator.integers(1, len(ids) + 1)]
        few = generator.choice(scores, size=generator.integers(1, 4))
        run[query_id] = {doc_id: float(generator.choice(few)) for doc_id in retrieved}
        judged = [doc_id for doc_id in ids if generator.random() < 0.5] or ids[:1]
        qrels[query_id] = {doc_id: int(generator.integers(-1, 4)) for doc_id in judged}
    return qrels, run


def test_the_random_runs_are_as_difficult_as_promised(difficult):
    _, run = difficult
    assert sum(len(set(np.float32(list(s.values())))) < len(s) for s in run.values()) > 0.9 * N_QUERIES
    collapsing = sum(len(set(s.values())) > len(set(np.float32(list(s.values())))) for s in run.values())
    assert collapsing > 200


@pytest.mark.parametrize("rel", [1, 2])
def test_3000_random_runs_agree_with_pytrec_eval(difficult, rel):
    qrels, run = difficult
    setting = "" if rel == 1 else f"(rel={rel})"
    names = {
        "map": f"AP{setting}",
        "map_cut_5": f"AP{setting}@5",
        "recip_rank": f"RR{setting}",
        "success_1": f"Success{setting}@1",
        "success_5": f"Success{setting}@5",
        **{f"P_{k}": f"P{setting}@{k}" for k in (1, 5, 100)},
        **{f"recall_{k}": f"R{setting}@{k}" for k in (1, 5, 100)},
    }
    if rel == 1:
        names |= {"ndcg": "nDCG", **{f"ndcg_cut_{k}": f"nDCG@{k}" for k in (1, 5, 10, 100)}}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(names), relevance_level=rel).evaluate(run)
    ours = evaluate(qrels, run, [*names.values(), f"RR{setting}@5"], resamples=10)
    assert len(theirs) == N_QUERIES
    for name, our_name in names.items():
        expected = np.array([theirs[query_id][name] for query_id in qrels])
        found = np.array(list(ours[our_name].per_query.values()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=name)
        assert abs(ours[our_name] - expected.mean()) < 1e-9
        assert expected.std() > 0.01  # the comparison says something
    # trec_eval has no RR@k; it is RR where that is at least 1/k. ir-measures would use another ranking for it.
    whole = np.array([theirs[query_id]["recip_rank"] for query_id in qrels])
    found = list(ours[f"RR{setting}@5"].per_query.values())
    np.testing.assert_allclose(found, np.where(whole >= 1 / 5, whole, 0), rtol=0, atol=1e-9)


def test_file_rank_agrees_with_pytrec_eval_on_scores_that_fall(difficult):
    qrels, run = difficult
    falling = {}
    for query_id, scores in run.items():
        order = sorted(scores, key=lambda doc: -np.float32(scores[doc]))  # stable: insertion order among equals
        falling[query_id] = {doc: float(len(order) - rank) for rank, doc in enumerate(order)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10", "recip_rank"}).evaluate(falling)
    ours = evaluate(qrels, run, ["nDCG@10", "RR"], ties="file-rank", resamples=10)
    for name, our_name in (("ndcg_cut_10", "nDCG@10"), ("recip_rank", "RR")):
        expected = [theirs[query_id][name] for query_id in qrels]
        np.testing.assert_allclose(list(ours[our_name].per_query.values()), expected, rtol=0, atol=1e-9)


def distinct(run):
    """Scores without ties in our order, so that the tie rules of ir-measures' providers cannot matter."""
    from retrieval.trec import ranked

    return {q: {d: float(len(s) - i) for i, (d, _) in enumerate(ranked(s))} for q, s in run.items()}


@pytest.mark.parametrize(
    "name",
    [
        "nDCG(judged_only=True)@5",
        "AP(judged_only=True)",
        "P(judged_only=True)@5",
        "RR(judged_only=True)",
        "nDCG(gains={1:3,2:3,3:10})@10",
        "nDCG(gains={0:1,3:2})",
        "Judged@5",
        "Judged@100",
        "RR@3",
    ],
)
def test_settings_agree_with_ir_measures(difficult, name):
    qrels, run = difficult
    # trec_eval takes a negative grade for "in no pool", ir-measures' Judged and we for a judgement.
    qrels = {query_id: {doc: max(grade, 0) for doc, grade in grades.items()} for query_id, grades in qrels.items()}
    measure = ir_measures.parse_measure(name)
    theirs = {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, distinct(run))}
    ours = evaluate(qrels, run, [name], resamples=10)[name]
    np.testing.assert_allclose([ours.per_query[q] for q in theirs], list(theirs.values()), rtol=0, atol=1e-9)


def test_exponential_gain_agrees_with_its_definition_and_gdeval(difficult):
    qrels, run = difficult
    name = "nDCG(dcg='exp-log2')@10"
    per_query = evaluate(qrels, run, [name], resamples=10)[name].per_query
    for query_id in list(qrels)[:300]:
        grades = [max(qrels[query_id].get(doc, 0), 0) for doc, _ in ranked(run[query_id])]
        ideal = sorted((max(grade, 0) for grade in qrels[query_id].values()), reverse=True)
        dcg, best = (sum((2**g - 1) / math.log2(i + 2) for i, g in enumerate(each[:10])) for each in (grades, ideal))
        assert per_query[query_id] == pytest.approx(dcg / best if best else 0, abs=1e-12)
    if not ir_measures.gdeval.is_available():  # it is a Perl script
        return
    # gdeval knows topics that are numbers, grades from 0 to 4, and prints five decimals.
    chosen = list(qrels)[:300]
    numbered_qrels = {q[1:]: {f"d{i}": max(g, 0) for i, g in enumerate(qrels[q].values())} for q in chosen}
    numbered_run = {}
    for query_id in chosen:
        numbers = {doc: f"d{i}" for i, doc in enumerate(qrels[query_id])}
        scores = run[query_id]
        numbered_run[query_id[1:]] = {numbers.get(doc, f"x{i}"): s for i, (doc, s) in enumerate(scores.items())}
    measure = ir_measures.nDCG(dcg="exp-log2") @ 10
    theirs = {
        m.query_id: m.value for m in ir_measures.gdeval.iter_calc([measure], numbered_qrels, distinct(numbered_run))
    }
    ours = evaluate(numbered_qrels, numbered_run, [str(measure)], resamples=10)[str(measure)]
    assert ours.gain == "exp2"
    np.testing.assert_allclose([ours.per_query[q] for q in theirs], list(theirs.values()), rtol=0, atol=0.6e-5)


def test_external_measures_see_our_ranking(difficult):
    """Bpref and Rprec of pytrec_eval on the run itself, whose C code has our tie rule, equal ours."""
    qrels, run = difficult
    qrels = {q: {d: max(g, 0) for d, g in grades.items()} for q, grades in qrels.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"Rprec", "bpref", "infAP"}).evaluate(run)
    ours = evaluate(qrels, run, ["Rprec", "bpref", "infAP"], resamples=10)
    for name, estimate in ours.items():
        np.testing.assert_allclose(
            list(estimate.per_query.values()), [theirs[q][name] for q in qrels], rtol=0, atol=1e-9, err_msg=name
        )


def test_scifact_and_nfcorpus_qrels_are_read(shared):
    for name, n in (("scifact", 300), ("nfcorpus", 323)):
        qrels = read_qrels(shared / "conformance" / "qrels" / f"qrels.beir-v1.0.0-{name}.test.txt")
        assert len(qrels) == n
        ideal = {q: {d: float(g) for d, g in grades.items()} for q, grades in qrels.items()}
        assert {float(e) for e in evaluate(qrels, ideal, ["nDCG@10", "RR@10", "AP"], resamples=10).values()} == {1.0}
    beir = read_qrels(shared / "data" / "scifact" / "qrels" / "test.tsv")
    assert beir == read_qrels(shared / "conformance" / "qrels" / "qrels.beir-v1.0.0-scifact.test.txt")
