"""What the doctor reads in a run's log: lines made by hand, and files that are damaged."""

import math

import pytest
from tiny_files import rows_file

from retrieval.doctor_findings import Commands, Examination
from retrieval.doctor_run import examine_log, read_log, read_result
from retrieval.errors import InputError
from retrieval.train_config import TrainConfig

CHANCE = math.log(16)
SOUND = {
    "chance_loss": CHANCE,
    "score_std": 0.2,
    "document_cosine": 0.1,
    "effective_rank": 13.0,
    "negatives_per_query": 15.0,
    "masked_share": 0.0,
    "accuracy": 0.7,
}


def log(losses, *, last=None, dev=(), **first):
    """Lines of a log every 5 steps; `first` changes the first line's values, `last` those of all others."""
    lines = [{"step": 0, "dev_pool_nDCG@10": dev[0]}] if dev else []
    for i, loss in enumerate(losses, start=1):
        values = {**SOUND, **(first if i == 1 else last or {})}
        lines.append(
            {"step": 5 * i, "loss": loss, "grad_norm": 1.0, **{k: v for k, v in values.items() if v is not None}}
        )
        if i < len(dev):
            lines.append({"step": 5 * i, "dev_pool_nDCG@10": dev[i]})
    return lines


def look(lines, result=None, **settings) -> Examination:
    config = TrainConfig(**{"model": "m", "data": "d", "out": "o", **settings})
    exam = Examination("run")
    examine_log(exam, lines, {"steps": 30} if result is None else result or None, Commands(config))
    return exam


def found(exam: Examination) -> dict[str, tuple[str, str]]:
    return {one.name: (one.severity, one.found) for one in exam.diagnoses}


FALLING = [1.2, 0.9, 0.7, 0.6, 0.5, 0.5]


def test_a_sound_log_gives_no_finding():
    exam = look(log(FALLING, dev=(0.5, 0.55, 0.6)))
    assert found(exam) == {}
    assert exam.unchecked == []
    assert exam.figures["loss_last"] == pytest.approx(0.5)
    assert exam.figures["chance_loss"] == pytest.approx(CHANCE)


@pytest.mark.parametrize(
    ("losses", "name"),
    [
        ([2.76, 2.77, 2.78, 2.77, 2.76, 2.77], "flat_loss"),
        ([CHANCE] * 6, "flat_loss"),
        ([4.0, 3.4, 3.0, 2.9, 2.8, 2.77], None),  # it came from above, and is still falling
        ([0.03, 0.05, 0.04, 0.05, 0.04, 0.06], None),  # nearly 0 is noise and no growth
        ([0.5, 0.9, 1.5, 2.0, 2.7, 2.7], "diverged"),
        ([2.0, 2.0, 2.0, 2.0, 2.0, 2.0], None),  # hard, but better than guessing
    ],
)
def test_the_loss_against_guessing(losses, name):
    assert list(found(look(log(losses)))) == ([name] if name else [])


HARDER = [0.5, 0.9, 1.2, 1.4, 1.5, 1.5]


def test_batches_that_become_harder_may_raise_the_loss_and_the_likeness():
    alike = {"document_cosine": 0.7}
    assert list(found(look(log(HARDER, last=alike)))) == ["diverged", "collapsed_in_training"]
    assert found(look(log(HARDER, last=alike), batching="cluster")) == {}
    assert found(look(log(HARDER, last=alike), refresh_every=10)) == {}
    assert list(found(look(log([0.5, 2.0, 3.0, 3.1, 3.2, 3.3]), batching="cluster"))) == ["diverged"]


def test_guessing_costs_more_where_several_losses_are_added():
    flat, half = [2 * CHANCE] * 6, [CHANCE] * 6
    assert list(found(look(log(half), batching="proxy", proxy_weight=1.0))) == []
    assert list(found(look(log(flat), batching="proxy", proxy_weight=1.0))) == ["flat_loss"]
    assert list(found(look(log(flat), matryoshka_dims=(8, 4)))) == ["flat_loss"]


def test_the_figures_of_a_flat_loss():
    assert found(look(log([2.76, 2.77, 2.78, 2.77, 2.77, 2.77])))["flat_loss"][1] == (
        "the loss is 2.77 in the last 2 lines, and guessing among a batch's documents has 2.77"
    )


def test_a_loss_that_is_not_ln_c_by_chance_is_compared_with_its_beginning():
    exam = look(log([1.0, 1.5, 2.0, 2.5, 3.0, 3.0]), loss="bixse")
    assert found(exam)["diverged"] == ("problem", "the loss was 1 at first and is 3")
    assert exam.unchecked == ["the loss against guessing: ln C is no measure of bixse"]
    assert found(look(log([1.0, 3.0]), loss="bixse")) == {}  # two lines are no trend


def test_a_gradient_far_above_the_others_is_a_remark():
    lines = log(FALLING)
    lines[3]["grad_norm"] = 2_000.0
    assert found(look(lines)) == {"diverged": ("remark", "a gradient has the norm 2e+03, and the median one 1")}
    lines[3]["grad_norm"] = 900.0
    assert found(look(lines)) == {}


def test_documents_that_lie_on_few_lines():
    exam = look(log(FALLING, last={"effective_rank": 2.5}))
    assert list(found(exam)) == ["collapsed_in_training"]
    assert found(look(log(FALLING, last={"effective_rank": 2.5}, effective_rank=4.0))) == {}  # four documents


def test_scores_that_do_not_differ():
    assert found(look(log(FALLING, last={"score_std": 0.004})))["equal_scores"] == (
        "problem",
        "a query's scores differ by 0.0040 (standard deviation)",
    )


@pytest.mark.parametrize("cosine", [0.96, 0.7])
def test_documents_that_were_drawn_together(cosine):
    exam = look(log(FALLING, last={"document_cosine": cosine, "effective_rank": 1.5}))
    assert found(exam)["collapsed_in_training"] == (
        "problem",
        f"the mean cosine of a batch's documents was 0.10 at first and is {cosine:.2f}, "
        "their effective rank 13.0 and 1.5",
    )


def test_documents_of_one_kind_are_no_collapse():
    alike = {"document_cosine": 0.8}
    assert found(look(log(FALLING, last=alike, **alike))) == {}


def test_batches_that_compare_nothing_or_are_masked():
    exam = look(log(FALLING, last={"negatives_per_query": 0.2, "masked_share": 0.8}))
    assert found(exam)["one_class"] == ("problem", "a query has 0.2 negatives in a batch")
    assert found(exam)["masked"] == ("remark", "80% of a batch's cells are masked")


def test_a_batch_of_one_document_has_no_spread_and_is_seen_all_the_same():
    none = {"score_std": None, "accuracy": None, "chance_loss": 0.0, "negatives_per_query": 0.0}
    assert list(found(look(log([0.0] * 6, last=none, **none)))) == ["one_class"]


def test_a_beginning_that_is_too_easy_is_a_remark():
    exam = look(log(FALLING, accuracy=1.0))
    assert found(exam) == {"easy_negatives": ("remark", "100% of the rows are right in the first line of the log")}
    assert exam.diagnoses[0].command.startswith("rankwright mine --model m --data d --split train")


def test_a_log_of_an_older_version_says_what_it_lacks():
    lines = [{"step": 5 * i, "loss": loss, "grad_norm": 1.0} for i, loss in enumerate(FALLING, start=1)]
    exam = look(lines)
    assert exam.diagnoses == []
    assert [reason.partition(":")[0] for reason in exam.unchecked] == [
        "the loss against guessing",
        "spread of scores, negatives, masks and collapse",
    ]


# --- dev --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dev", "expected"),
    [
        ((0.5, 0.48, 0.44), ("worse_than_start", "problem")),
        ((0.5, 0.48, 0.47), ("overfit", "remark")),  # within the noise of the start, and below it
        ((0.5, 0.48, 0.49), None),
        ((0.5, 0.6, 0.7, 0.6, 0.6, 0.6, 0.6), ("overfit", "remark")),
        ((0.5, 0.6, 0.7, 0.69, 0.69, 0.69, 0.69), None),
        ((0.5,), None),
    ],
)
def test_how_dev_went(dev, expected):
    diagnoses = [(one.name, one.severity) for one in look(log(FALLING, dev=dev)).diagnoses]
    assert diagnoses == ([expected] if expected else [])


def test_the_figures_of_dev():
    assert found(look(log(FALLING, dev=(0.5, 0.48, 0.4))))["worse_than_start"][1] == (
        "dev nDCG@10 was 0.500 before training and is 0.400 at step 10"
    )


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_run_that_has_not_finished_is_told_where_it_stands():
    one = look(log(FALLING), result=False).diagnoses[0]
    assert (one.name, one.severity) == ("unfinished", "remark")
    assert one.found == "there is no result.json; the last line of its log is step 30"
    assert one.command == "rankwright train --config o/config.yaml --out o --resume"
    empty = look([], result=False)
    assert empty.diagnoses[0].found == "there is no result.json; nothing is logged"
    assert empty.unchecked == ["how the loss went: no step is logged"]


def test_logs_and_results_are_read_or_refused_with_their_place(tmp_path):
    assert read_log(tmp_path) == []
    assert read_result(tmp_path) is None
    rows_file(tmp_path / "metrics.jsonl", [{"step": 1}, "{broken"])
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: "):
        read_log(tmp_path)
    rows_file(tmp_path / "metrics.jsonl", [{"step": 1}])
    assert read_log(tmp_path) == [{"step": 1}]
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json: is damaged"):
        read_result(tmp_path)
