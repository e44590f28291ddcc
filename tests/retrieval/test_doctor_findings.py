"""The doctor's findings: one order, problems first, and commands that the command line takes."""

import json
import re
import shlex
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.cli.flags import add_settings_flags
from retrieval.cli.main import VERBS, Parser
from retrieval.cli.settings import apply_settings
from retrieval.doctor_findings import CAUSES, Commands, Examination, Thresholds
from retrieval.train_config import TrainConfig

NAMES = st.sampled_from(list(CAUSES))


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"model": "my model", "data": "D", "out": "o", **changes})


@given(st.lists(st.tuples(NAMES, st.sampled_from(["problem", "remark"])), max_size=12))
def test_problems_come_first_and_each_sort_in_the_order_of_causes(found):
    exam = Examination("x")
    for name, severity in found:
        exam.add(name, severity, f"{name} {severity}", "rankwright")
    order = list(CAUSES)
    problems = [name for name in order if (name, "problem") in found]
    remarks = [name for name in order if (name, "remark") in found and name not in problems]
    assert [(one.name, one.severity) for one in exam.diagnoses] == [
        *((name, "problem") for name in problems),
        *((name, "remark") for name in remarks),
    ]
    assert [one.name for one in exam.problems] == problems
    assert all(one.found == f"{one.name} {one.severity}" and one.cause == CAUSES[one.name] for one in exam.diagnoses)


def test_the_first_of_two_findings_of_a_name_stays_unless_the_second_is_worse():
    exam = Examination("x")
    exam.remark("leak", "one query", "a")
    exam.remark("leak", "two queries", "b")
    assert [one.found for one in exam.diagnoses] == ["one query"]
    exam.problem("leak", "all queries", "c")
    exam.remark("leak", "one query", "d")
    exam.problem("leak", "some queries", "e")
    assert [(one.severity, one.found, one.command) for one in exam.diagnoses] == [("problem", "all queries", "c")]


def test_a_finding_that_is_in_no_table_cannot_be_added():
    with pytest.raises(KeyError):
        Examination("x").problem("gremlins", "three", "")


def test_an_examination_is_json():
    exam = Examination("run", figures={"auc": 0.1234567})
    exam.problem("leak", "all queries", "rankwright data D")
    exam.unchecked.append("the model")
    found = json.loads(json.dumps(exam.to_dict(), allow_nan=False))
    assert (found["subject"], found["problems"], found["unchecked"]) == ("run", 1, ["the model"])
    assert found["figures"] == {"auc": 0.123457}
    assert found["diagnoses"] == [
        {
            "name": "leak",
            "severity": "problem",
            "found": "all queries",
            "cause": CAUSES["leak"],
            "command": "rankwright data D",
        }
    ]


def test_the_page_names_findings_that_exist():
    page = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    table = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ") and "you see" not in line]
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert len(table) == 6
    assert named <= CAUSES.keys()
    assert CAUSES.keys() <= set(re.findall(r"`(\w+)`", page))


def test_every_limit_is_a_positive_number():
    assert all(getattr(Thresholds(), field.name) > 0 for field in fields(Thresholds))


def test_a_flag_that_is_changed_stands_once():
    assert Commands(config()).train("--model", "other") == "rankwright train --data D --out runs/next --model other"


@pytest.mark.parametrize(
    "commands",
    [
        Commands(config()),
        Commands(config(rows=("my rows.jsonl", "b.jsonl"))),
        Commands(config(), Path("runs/mine")),
    ],
    ids=["setup", "rows", "run"],
)
@pytest.mark.parametrize("what", ["train", "data", "mine", "audit"])
def test_every_command_is_one_that_the_command_line_takes(commands, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.yaml").write_text("model: m\ndata: d\nout: o\n")
    changes = ("--query-prompt", "query: ") if what == "train" else ()
    program, verb, *words = shlex.split(getattr(commands, what)(*changes))
    assert (program, verb) == ("rankwright", what)
    assert verb in VERBS
    parser = Parser(prog=f"rankwright {verb}", allow_abbrev=False)
    import_module(f"retrieval.cli.{verb}").configure(parser)
    add_settings_flags(parser)
    args = apply_settings(parser, words)
    assert args.data == ("d" if commands.run and what == "train" else "D")
    if what == "train":
        assert args.query_prompt == "query: "
        assert args.out == ("runs/mine-2" if commands.run else "runs/next")
        assert commands.run or args.model == "my model"
        assert commands.run or tuple(args.rows or ()) == commands.config.rows
