import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.cli.main import Parser
from retrieval.cli.settings import apply_settings, flatten, parse_assignment
from retrieval.errors import InputError


def parser(*, nested: bool = True) -> Parser:
    made = Parser(prog="rankwright verb", allow_abbrev=False)
    made.add_argument("items", nargs="*")
    made.add_argument("--data", required=True)
    made.add_argument("--learning-rate", default="1e-3")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--loss", default="infonce")
    made.add_argument("--query-prompt")
    made.add_argument("--weights", metavar="W,W")
    made.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    made.add_argument("--rows", action="append")
    made.add_argument("--overwrite", action="store_true")
    made.add_argument("--eval-full", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--config")
    made.add_argument("--set", action="append", default=[], dest="assignments")
    if nested:
        made.set_defaults(nested={})
    return made


def parsed(*arguments, nested=True):
    return apply_settings(parser(nested=nested), ["--data", "d", *arguments])


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return str(path)

    return write


# --- precedence -------------------------------------------------------------------------------------------------------


def test_flag_wins_over_set_over_yaml_over_default(config):
    path = config("learning_rate: 3\nseed: 3\nloss: three\n")
    found = parsed("--config", path, "--set", "seed=2", "--set", "loss=two", "--loss", "one")
    assert (found.learning_rate, found.seed, found.loss, found.precision) == ("3", 2, "one", "fp32")


def test_values_between_commas_may_be_a_list(config):
    assert parsed("--config", config("weights: [0.3, 0.7]\n")).weights == "0.3,0.7"
    assert parsed("--set", "weights=[0.3, 0.7]").weights == parsed("--weights", "0.3,0.7").weights


def test_the_last_of_two_sets_wins():
    assert parsed("--set", "seed=2", "--set", "seed=3").seed == 3


@pytest.mark.parametrize("order", [0, 1])
def test_a_flag_wins_wherever_it_stands(config, order):
    parts = [["--seed", "1"], ["--config", config("seed: 3\n"), "--set", "seed=2"]]
    assert parsed(*parts[order], *parts[1 - order]).seed == 1


def test_a_required_flag_may_come_from_yaml_or_set(config):
    assert apply_settings(parser(), ["--config", config("data: mine\n")]).data == "mine"
    assert apply_settings(parser(), ["--set", "data=mine"]).data == "mine"
    with pytest.raises(InputError, match="the following arguments are required: --data; see: rankwright verb --help"):
        apply_settings(parser(), [])


def test_flags_replace_a_list_of_the_yaml(config):
    path = config("rows: [a, b]\n")
    assert parsed("--config", path).rows == ["a", "b"]
    assert parsed("--config", path, "--rows", "c", "--rows", "d").rows == ["c", "d"]
    assert parsed("--config", path, "--set", "rows=[e]").rows == ["e"]
    assert parsed("--set", "rows=one").rows == ["one"]
    assert parsed().rows is None


def test_switches_are_true_or_false(config):
    found = parsed("--config", config("overwrite: true\neval_full: false\n"))
    assert (found.overwrite, found.eval_full) == (True, False)
    assert parsed("--config", config("eval_full: false\n"), "--eval-full").eval_full is True
    for bad in ("overwrite=1", "overwrite=maybe", "eval_full=0"):
        with pytest.raises(InputError, match="wanted true or false"):
            parsed("--set", bad)


# --- nested keys ------------------------------------------------------------------------------------------------------


def test_dotted_and_nested_keys_are_the_same(config):
    expected = {"loss.temperature": 0.02, "loss.symmetric": True}
    assert parsed("--config", config("loss: {temperature: 0.02, symmetric: true}\n")).nested == expected
    assert parsed("--config", config("loss.temperature: 0.02\nloss.symmetric: true\n")).nested == expected
    assert parsed("--set", "loss.temperature=0.02", "--set", "loss.symmetric=true").nested == expected
    assert parsed("--set", "loss={temperature: 0.02, symmetric: true}").nested == expected


def test_set_wins_over_yaml_in_either_spelling(config):
    for text in ("loss: {temperature: 1, symmetric: true}\n", "loss.temperature: 1\nloss: {symmetric: true}\n"):
        found = parsed("--config", config(text), "--set", "loss.temperature=0.02")
        assert found.nested == {"loss.temperature": 0.02, "loss.symmetric": True}


def test_the_name_of_a_nested_setting_is_the_setting_and_a_flag_wins_over_it(config):
    path = config("loss: {name: bixse, scale: 20}\n")
    found = parsed("--config", path)
    assert (found.loss, found.nested) == ("bixse", {"loss.scale": 20})
    assert parsed("--config", path, "--loss", "mw").loss == "mw"
    assert parsed("--config", path, "--set", "loss=mw").loss == "mw"


def test_a_verb_without_nested_settings_refuses_them():
    with pytest.raises(InputError, match=r"unknown setting 'loss.temperature'; did you mean 'loss'"):
        parsed("--set", "loss.temperature=1", nested=False)
    with pytest.raises(InputError, match=r"unknown setting 'zzz'; known: data"):
        parsed("--set", "zzz=1", nested=False)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2e-5", 2e-5),
        ("1e30", 1e30),
        (".5", 0.5),
        ("-3", -3),
        ("+1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("", None),
        ("words", "words"),
        ("query: ", "query: "),
        ("query:", "query:"),
        ("- not a list", "- not a list"),
        (" leading and trailing ", " leading and trailing "),
        ("'quoted '", "quoted "),
        ('"2e-5"', "2e-5"),
        ("[1, 2e-5, x]", [1, 2e-5, "x"]),
        ("{a: 1}", {"a": 1}),
        ("a=b=c", "a=b=c"),
        ("2024-11-24", "2024-11-24"),
        ("12:30:45", "12:30:45"),
        ("{unclosed", "{unclosed"),
        ("[unclosed", "[unclosed"),
        ("@at", "@at"),
        ("*star", "*star"),
        ("infinity", "infinity"),
        ("nan", "nan"),
        ("C:\\path", "C:\\path"),
        ("a # b", "a # b"),
        ("# a comment", None),
        ("no", "no"),
        ("yes", "yes"),
        ("0x10", "0x10"),
        ("~", None),
        ("010", "010"),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_value_is_what_it_looks_like(text, expected):
    key, value = parse_assignment(f"key={text}")
    assert key == "key"
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("text", ["key", "=value", " =value", ""])
def test_an_assignment_needs_a_key_and_a_sign(text):
    with pytest.raises(InputError, match="wanted KEY=VALUE"):
        parse_assignment(text)


@given(st.text(min_size=1))
def test_any_text_can_be_assigned_and_nothing_is_raised(text):
    key, value = parse_assignment(f"key={text}")
    assert key == "key"
    if isinstance(value, str) and text.strip()[:1] not in tuple("'\"[{"):
        assert value == text


def test_numbers_reach_flags_as_text_and_types_check_them(config):
    assert parsed("--set", "learning_rate=2e-5").learning_rate == "2e-05"
    assert parsed("--config", config("seed: 12\n")).seed == 12
    assert parsed("--set", "query_prompt=query: ").query_prompt == "query: "
    assert parsed("--config", config("query_prompt: null\n")).query_prompt is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "seed=x"], "setting 'seed': invalid int value: 'x'"),
        (["--set", "seed=1.5"], "setting 'seed': invalid int value: '1.5'"),
        (["--set", "seed=true"], "setting 'seed' got True; wanted a number"),
        (["--set", "seed=[1]"], r"setting 'seed' got \[1\]; wanted a number"),
        (["--set", "query_prompt=true"], "setting 'query_prompt' got True; wanted text; put it in quotes"),
        (["--set", "precision=fp16"], "setting 'precision': invalid choice: 'fp16'"),
        (["--set", "sed=1"], "unknown setting 'sed'; did you mean 'seed'"),
        (["--set", "learnin-rate=1"], "unknown setting 'learnin-rate'; did you mean 'learning_rate'"),
        (
            ["--set", "zzz=1"],
            "unknown setting 'zzz'; if it is the loss's, write loss.zzz; known: data, eval_full, items, learn",
        ),
        (["--set"], "argument --set: expected one argument; see: rankwright verb --help"),
        (["--config"], "argument --config: expected one argument; see: rankwright verb --help"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["--config", ""], "is a folder; wanted a file"),
        (["--seed"], "argument --seed: expected one argument"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--precision", "fp16"], "argument --precision: invalid choice: 'fp16'"),
        (["--sed", "1"], r"unknown flag '--sed'; did you mean '--seed'\?; see: rankwright verb --help"),
        (["--sed=1"], "unknown flag '--sed'; did you mean '--seed'"),
        (["--learn", "1"], "unknown flag '--learn'"),  # no abbreviation: it could mean another flag tomorrow
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        parsed(*arguments)
    assert "\n" not in str(caught.value)


def test_an_error_in_the_yaml_has_its_line(config):
    with pytest.raises(InputError, match=r"settings.yaml:2: not YAML"):
        parsed("--config", config("seed: 1\nloss: a: b\n"))
    with pytest.raises(InputError, match="unknown setting 'lerning_rate'; did you mean 'learning_rate'"):
        parsed("--config", config("lerning_rate: 1\n"))


def test_words_that_look_like_flags_of_ours_in_another_place():
    assert parsed("one", "--seed", "1", "two").items == ["one", "two"]
    assert parsed("--", "--seed").items == ["--seed"]


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}, "d": 2}, "e": {}, "f": [1]}) == {"a.b.c": 1, "a.d": 2, "f": [1]}
