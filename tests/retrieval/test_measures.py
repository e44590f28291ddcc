import subprocess
import sys

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.measures import DEFAULT_MEASURES, NATIVE, Measure, parse_measure, parse_measures


@pytest.mark.parametrize(
    ("spellings", "measure"),
    [
        ("nDCG@10 NDCG@10 ndcg@10 ndcg_cut_10 ndcg_cut.10 ndcg_at_10 nDCG()@10", Measure("nDCG", 10, gain="linear")),
        ("nDCG ndcg NDCG nDCG(dcg='log2')", Measure("nDCG", gain="linear")),
        ("nDCG(dcg='exp-log2')@10 ndcg_burges@10", Measure("nDCG", 10, gain="exp2")),
        ("nDCG(gains={1:3,2:7})@5", Measure("nDCG", 5, gain="linear", gains={1: 3, 2: 7})),
        ("nDCG(judged_only=True)@5", Measure("nDCG", 5, gain="linear", judged_only=True)),
        ("RR MRR mrr recip_rank", Measure("RR")),
        ("RR@10 MRR@10 mrr@10 mrr_at_10", Measure("RR", 10)),
        ("AP MAP map", Measure("AP")),
        ("AP@100 MAP@100 map@100 map_cut_100 map_at_100", Measure("AP", 100)),
        ("AP(rel=2)@100", Measure("AP", 100, rel=2)),
        ("P@5 P_5 P.5 p@5 Precision@5 precision@5 precision_at_5", Measure("P", 5)),
        ("R@100 recall_100 Recall@100 recall@100 recall_at_100 r@100", Measure("R", 100)),
        ("Success@5 success_5 success@5 hit_rate@5 hit_rate_at_5", Measure("Success", 5)),
        ("Judged@10 judged@10", Measure("Judged", 10)),
        ("Judged", Measure("Judged")),
    ],
)
def test_one_measure_in_all_spellings(spellings, measure):
    for spelling in spellings.split():
        assert parse_measure(spelling) == measure, spelling
        assert parse_measure(f" {spelling} ") == measure


@pytest.mark.parametrize(
    ("spellings", "provided"),
    [
        ("Rprec RPrec rprec r-precision r_precision", ir_measures.Rprec),
        ("Bpref bpref", ir_measures.Bpref),
        ("infAP", ir_measures.infAP),
        ("IPrec@0.1 iprec_at_recall_0.1 iprec_at_recall_0.10", ir_measures.IPrec @ 0.1),
        ("SetF set_F", ir_measures.SetF),
        ("SetF(beta=2.0)", ir_measures.SetF(beta=2.0)),
        ("SetR set_recall", ir_measures.SetR),
        ("SetRelP set_relative_P", ir_measures.SetRelP),
        ("NumRet num_ret", ir_measures.NumRet),
        ("NumRelRet num_rel_ret", ir_measures.NumRelRet),
        ("Compat", ir_measures.Compat),
    ],
)
def test_other_measures_are_those_of_ir_measures(spellings, provided):
    for spelling in spellings.split():
        measure = parse_measure(spelling)
        assert measure.provided == provided, spelling
        assert measure.name == provided.NAME


def test_names_are_kept_as_typed_and_count_once():
    parsed = parse_measures(["ndcg_cut_10", "nDCG@10", "P_5", "P_5"])
    assert list(parsed) == ["ndcg_cut_10", "nDCG@10", "P_5"]
    assert parsed["ndcg_cut_10"] == parsed["nDCG@10"]
    assert list(parse_measures(DEFAULT_MEASURES)) == ["nDCG@10", "RR@10", "AP", "R@100"]


def test_objects_of_ir_measures_are_understood():
    objects = [ir_measures.nDCG(dcg="exp-log2") @ 10, ir_measures.AP(rel=2), ir_measures.R @ 20]
    assert [str(name) for name in parse_measures(objects)] == ["nDCG(dcg='exp-log2')@10", "AP(rel=2)", "R@20"]


@given(st.sampled_from(sorted(NATIVE)), st.integers(1, 5000), st.integers(1, 5))
def test_what_ir_measures_prints_is_read_back(name, k, rel):
    settings = {} if name in ("nDCG", "Judged") else {"rel": rel}
    printed = str(getattr(ir_measures, name)(**settings) @ k)
    assert parse_measure(printed) == Measure(name, k, gain="linear" if name == "nDCG" else None, **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nDGC@10", "unknown measure 'nDGC@10'; did you mean 'nDCG'?"),
        ("sucess@5", "unknown measure 'sucess@5'; did you mean 'Success'?"),
        ("recal_100", "unknown measure 'recal_100'; did you mean 'Recall'?"),
        ("zzz", "unknown measure 'zzz'; such as nDCG@10, RR@10, AP, R@100, P@5, Success@5"),
        ("", "is not of the form nDCG@10"),
        ("@10", "is not of the form nDCG@10"),
        ("nDCG@", "is not of the form nDCG@10"),
        ("nDCG@-1", "is not of the form nDCG@10"),
        ("P@5,10", "is not of the form nDCG@10"),
        ("P", "measure 'P' needs a cut-off, such as P@10"),
        ("recall", "measure 'recall' needs a cut-off, such as R@10"),
        ("success", "needs a cut-off, such as Success@10"),
        ("P@0", "cutoff must be an integer ≥ 1, got 0"),
        ("P@2.5", "cutoff must be an integer ≥ 1, got 2.5"),
        ("P(cutoff=True)", "cutoff must be an integer ≥ 1, got True"),
        ("AP(rel=0)", "rel must be an integer ≥ 1, got 0"),
        ("nDCG(rel=1)", "unknown setting 'rel'"),
        ("nDCG(dgc='log2')", "unknown setting 'dgc'; did you mean 'dcg'?"),
        ("nDCG(dcg='log3')", "dcg must be 'log2' or 'exp-log2', got 'log3'"),
        ("nDCG(gains=3)", "gains must be a dict from grade to grade"),
        ("nDCG(gains={1:0.5})", "gains must be a dict from grade to grade"),
        ("P(judged_only=1)@5", "judged_only must be True or False, got 1"),
        ("P(5)", "wanted settings as (name=value, …), got (5)"),
        ("P(rel=)@5", "wanted settings as (name=value, …), got (rel=)"),
        ("P(rel=__import__('os'))@5", "wanted settings as"),
        ("P(**{})@5", "wanted settings as"),
        ("Rprec@5", "the settings of Rprec are: rel, judged_only"),
        ("SetF(beta='x')", "the settings of SetF are: rel, beta, judged_only"),
        ("IPrec", "the settings of IPrec are: recall, rel, judged_only"),
        ("Accuracy", "measure 'Accuracy' is not available"),
        ("alpha_nDCG@10", "measure 'alpha_nDCG@10' is not available"),
    ],
)
def test_bad_names_are_told_with_the_fix(text, message):
    with pytest.raises(InputError) as caught:
        parse_measure(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_provider_that_is_not_installed_is_named():
    pytest.importorskip("ir_measures")
    try:
        import cwl  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(InputError, match=r"pip install ir-measures\[cwl_eval\]"):
            parse_measure("RBP(rel=1)")
    else:
        assert parse_measure("RBP(rel=1)").name == "RBP"


def test_a_text_instead_of_a_list_is_told():
    with pytest.raises(InputError, match=r"write \['nDCG@10'\]"):
        parse_measures("nDCG@10")


def test_our_own_measures_do_not_load_ir_measures():
    code = (
        "import sys; from retrieval.measures import *; parse_measures(DEFAULT_MEASURES); "
        "print([m for m in ('ir_measures', 'torch', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
