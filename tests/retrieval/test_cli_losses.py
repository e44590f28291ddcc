"""`rankwright losses` as it is typed."""

import json

import pytest

from rankers.losses import LOSSES, REGULARISERS
from retrieval.cli.main import main

API_KEYS = ["name", "labels", "use", "cost", "paper"]


def printed(capsys, *arguments, status=0) -> str:
    assert main(["losses", *arguments]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_json_is_one_array_with_an_object_for_each_loss(capsys):
    found = json.loads(printed(capsys, "--json"))
    assert [entry["name"] for entry in found] == list(LOSSES)
    for entry in found:
        assert list(entry) == API_KEYS
        assert all(isinstance(value, str) and value for value in entry.values())
    by_name = {entry["name"]: entry for entry in found}
    assert by_name["infonce"]["paper"].endswith("arXiv:1807.03748")
    assert by_name["ranknet"]["cost"] == "n²"
    assert by_name["bixse"]["labels"] == "probability"


def test_the_table_has_a_line_for_each_loss_and_for_each_regulariser(capsys):
    losses, heading, regularisers = printed(capsys).partition("terms over embeddings")
    assert heading
    lines = losses.splitlines()
    assert lines[0].split() == ["name", "labels", "cost", "use", "paper"]
    starts = [lines[0].index(column) for column in ("labels", "cost", "use", "paper")]
    for line, entry in zip(lines[1:], LOSSES.values(), strict=False):
        assert line.startswith(f"{entry.name} ")
        for start, text in zip(starts, (entry.labels, entry.cost, entry.use, entry.paper), strict=True):
            assert line[start:].startswith(text)  # columns stand under their heading
            assert line[start - 2 : start] == "  "
        assert line == line.rstrip()
    assert len([line for line in lines if line]) == 1 + len(LOSSES)
    assert all(f"\n{name} " in regularisers for name in REGULARISERS)
    assert not any(name in losses.split() for name in REGULARISERS)


@pytest.mark.parametrize("name", LOSSES)
def test_one_loss_is_told_with_its_formula_and_every_setting(name, capsys):
    out = printed(capsys, name)
    entry = LOSSES[name]
    assert out.startswith(f"{name}: {entry.use}\n")
    assert "Source: " in out
    assert f"labels: {entry.labels}\n" in out
    assert f"cost: {entry.cost}; needs: {entry.needs}\n" in out
    settings = out.partition("settings and defaults:\n")[2].splitlines()
    assert [line.split(":")[0] for line in settings] == [f"  loss.{setting}" for setting in entry.settings]
    for line in settings:
        setting, _, value = line.strip().removeprefix("loss.").partition(": ")
        if setting in entry.defaults:
            wanted = entry.defaults[setting]
            assert json.loads(value) == (list(wanted) if isinstance(wanted, tuple) else wanted)
    assert ("state of each query" in out) == bool(entry.state)


def test_a_regulariser_is_told_too(capsys):
    out = printed(capsys, "uniformity")
    assert "Wang and Isola 2020" in out
    assert out.endswith("settings and defaults:\n  loss.t: 2.0\n")


def test_json_of_one(capsys):
    assert [entry["name"] for entry in json.loads(printed(capsys, "mw", "--json"))] == ["mw"]
    [found] = json.loads(printed(capsys, "alignment", "--json"))
    assert list(found) == ["name", "use", "paper"]  # it takes embeddings: no labels


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("infonec", "did you mean 'infonce'?"),
        ("BIXSE", "unknown loss 'BIXSE'; known: alignment, "),
        ("uniformty", "did you mean 'uniformity'?"),
        ("bixse + ranknet", "unknown loss 'bixse + ranknet'"),
    ],
)
def test_an_unknown_name_names_the_nearest(typed, told, capsys):
    err = printed(capsys, typed, status=2)
    assert err.startswith("error: ")
    assert told in err
    assert err.count("\n") == 1
