"""What the doctor sees in settings alone: learning rates, and temperatures tried on the loss itself."""

import math

import pytest
import torch

from rankers.losses import LOSSES, build
from retrieval.doctor_findings import Commands, Examination
from retrieval.doctor_settings import examine_settings
from retrieval.objective import build_loss
from retrieval.train_config import TrainConfig


def look(*, columns=32, steps=100, static=False, bounded=True, **settings) -> Examination:
    values = {name.replace("__", "."): value for name, value in settings.items()}
    config = TrainConfig.from_dict({"model": "m", "data": "d", "out": "o", **values})
    exam = Examination("x")
    how = {"columns": columns, "steps": steps, "static": static, "bounded": bounded}
    examine_settings(exam, config, build_loss(config), Commands(config), **how)
    return exam


def problems(exam: Examination) -> dict[str, str]:
    return {one.name: one.found for one in exam.problems}


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("columns", [4, 32, 1000])
def test_no_loss_has_a_problem_with_its_own_settings(name, columns):
    assert look(loss=name, columns=columns).problems == []


@pytest.mark.parametrize("name", ["infonce", "decoupled_softmax", "softmax_ce", "sl", "poly1", "mw", "ranknet"])
def test_a_temperature_of_5_is_a_problem(name):
    [one] = look(loss=name, loss__temperature=5.0).problems
    assert one.name == "temperature"
    assert one.command == "rankwright train --model m --data d --out runs/next --set loss.temperature=0.05"


@pytest.mark.parametrize(("scale", "is_bad"), [(0.2, True), (10, False), (20, False), ("learned", False)])
def test_a_scale_is_a_temperature_the_other_way_round(scale, is_bad):
    exam = look(loss="bixse", loss__scale=scale)
    assert list(problems(exam)) == (["temperature"] if is_bad else [])
    if is_bad:
        assert exam.problems[0].command.endswith("--set loss.scale=20")


def test_what_is_left_of_the_loss_by_hand():
    # ln(1 + 31 e^(-0.7 / 5)) against ln 32
    exam = look(loss__temperature=5.0)
    left = math.log(1 + 31 * math.exp(-0.14))
    assert exam.figures["loss_left_infonce"] == pytest.approx(left / math.log(32), rel=1e-5)
    assert problems(exam)["temperature"] == (
        "at infonce with temperature 5 a positive 0.7 above all 31 negatives has the loss 3.33, and guessing has 3.47: "
        "cosines end at 1"
    )


@pytest.mark.parametrize(("temperature", "is_bad"), [(0.01, False), (0.05, False), (0.2, False), (1.0, True)])
def test_usual_temperatures_are_none(temperature, is_bad):
    assert bool(look(loss__temperature=temperature).problems) == is_bad


def test_a_temperature_so_small_that_rounding_decides():
    assert problems(look(loss__temperature=0.0005)) == {
        "temperature": "infonce with temperature 0.0005 multiplies cosines by 2,000, "
        "and with them the rounding of bf16 by up to 8 nats"
    }


def test_a_temperature_at_which_a_float_overflows():
    assert problems(look(loss__temperature=1e-40)) == {
        "overflow": "infonce with temperature 1e-40 makes the loss nan where the positive is ranked last"
    }
    with torch.no_grad():  # as the loss itself says
        assert not math.isfinite(float(build("infonce", temperature=1e-40)(torch.eye(2), 1 - torch.eye(2))))


def test_each_term_of_a_sum_is_looked_at():
    exam = look(loss="infonce + 0.5*ranknet", loss_settings={"ranknet.temperature": 5.0})
    [one] = exam.problems
    assert one.command.endswith("--set loss.ranknet.temperature=0.05")
    assert {"loss_left_infonce", "loss_left_ranknet"} <= exam.figures.keys()


def test_scores_that_are_no_cosines_have_no_scale_to_fight():
    exam = look(loss__temperature=5.0, bounded=False)
    assert exam.problems == []
    assert exam.unchecked == ["temperature of infonce: the model's scores are dot products, which have no scale"]


@pytest.mark.parametrize(
    ("rate", "static", "severity"),
    [
        (1.0, False, "problem"),
        (1e-2, False, "problem"),
        (2e-3, False, "remark"),
        (2e-4, False, None),
        (2e-5, False, None),
        (1e-9, False, "problem"),
        (1.0, True, "problem"),
        (1e-2, True, None),
    ],
)
def test_learning_rates(rate, static, severity):
    found = {one.name: one.severity for one in look(learning_rate=rate, static=static).diagnoses}
    assert found.get("learning_rate") == severity


def test_a_small_rate_over_many_steps_moves_the_weights():
    assert problems(look(learning_rate=1e-9, steps=100)) == {
        "learning_rate": "learning_rate 1e-09 in 100 steps moves a weight by 1e-07 at most"
    }
    assert look(learning_rate=1e-9, steps=20_000).problems == []
    assert look(learning_rate=1e-9, steps=None).problems == []


def test_a_run_without_validation_is_told():
    assert [one.name for one in look(eval_strategy="no").diagnoses] == ["no_validation"]
