import math
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.train_config import TrainConfig
from retrieval.yamlfiles import dump_yaml, parse_yaml

BASE = {"model": "m", "data": "d", "out": "o"}


def config(**values) -> TrainConfig:
    return TrainConfig.from_dict(BASE | values)


def test_the_defaults_stand_for_themselves():
    assert config() == TrainConfig(**BASE)
    assert (config().learning_rate, config().loss, config().rows, config().loss_settings) == (2e-5, "infonce", (), {})


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ({"max_steps": "12"}, "max_steps", 12),
        ({"max_steps": 1e3}, "max_steps", 1000),
        ({"max_steps": "1e3"}, "max_steps", 1000),
        ({"seed": "9007199254740993"}, "seed", 2**53 + 1),
        ({"seed": 2**62 + 1}, "seed", 2**62 + 1),
        ({"learning_rate": "2e-5"}, "learning_rate", 2e-5),
        ({"learning_rate": 1}, "learning_rate", 1.0),
        ({"rows": "a.jsonl"}, "rows", ("a.jsonl",)),
        ({"rows": ["a", Path("b")]}, "rows", ("a", "b")),
        ({"rows": None}, "rows", ()),
        ({"model": Path("x/y")}, "model", "x/y"),
        ({"out": 7}, "out", "7"),
        ({"query_max_length": None}, "query_max_length", None),
        ({"query_max_length": "32"}, "query_max_length", 32),
        ({"query_prompt": ""}, "query_prompt", ""),
        ({"eval_full": False}, "eval_full", False),
        ({"loss.name": "mw"}, "loss", "mw"),
    ],
)
def test_values_get_the_type_of_their_field(values, name, expected):
    found = getattr(config(**values), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning_rate": 1}, "unknown setting 'lerning_rate'; did you mean 'learning_rate'"),
        ({"los.temperature": 1}, "unknown setting 'los.temperature'"),
        ({"learning_rate": "fast"}, "setting 'learning_rate' got 'fast'; wanted a number"),
        ({"learning_rate": None}, "setting 'learning_rate' got None; wanted a number"),
        ({"learning_rate": True}, "setting 'learning_rate' got True; wanted a number"),
        ({"learning_rate": [1]}, r"setting 'learning_rate' got \[1\]; wanted a number"),
        ({"max_steps": 1.5}, "setting 'max_steps' got 1.5; wanted a whole number"),
        ({"max_steps": "inf"}, "setting 'max_steps' got 'inf'; wanted a whole number"),
        ({"max_steps": math.nan}, "setting 'max_steps' got nan; wanted a whole number"),
        ({"eval_full": "yes"}, "setting 'eval_full' got 'yes'; wanted true or false"),
        ({"eval_full": 1}, "setting 'eval_full' got 1; wanted true or false"),
        ({"model": True}, "setting 'model' got True; wanted text"),
        ({"model": {"a": 1}}, "setting 'model' got .*; wanted text"),
        ({"rows": 7}, "setting 'rows' got 7; wanted a list"),
        ({"loss_settings": 3}, "setting 'loss_settings' got 3; wanted a mapping"),
        ({"model": ""}, "missing --model"),
        ({"model": None, "out": ""}, "setting 'model' got None"),
        ({"learning_rate": 0}, "learning_rate must be > 0, got 0"),
        ({"learning_rate": -1}, "learning_rate must be > 0"),
        ({"learning_rate": "nan"}, "learning_rate must be a finite number, got nan"),
        ({"learning_rate": "inf"}, "learning_rate must be a finite number, got inf"),
        ({"num_train_epochs": "1e999"}, "num_train_epochs must be a finite number, got inf"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number, got nan"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must be a finite number"),
        ({"max_grad_norm": -1}, "max_grad_norm must be >= 0, got -1"),
        ({"warmup_ratio": 1.5}, "warmup_ratio is a share of all steps, 0 to 1; got 1.5"),
        ({"warmup_ratio": -0.1}, "warmup_ratio is a share"),
        ({"max_steps": 0}, "max_steps must be > 0, or -1 for num_train_epochs; got 0"),
        ({"max_steps": -2}, "max_steps must be > 0"),
        ({"num_train_epochs": 0}, "num_train_epochs must be > 0, got 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be >= 1, got 0"),
        ({"per_device_train_batch_size": 1, "num_negatives": 0}, "leaves no negatives; raise either"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be >= 1"),
        ({"num_positives": 0}, "num_positives must be >= 1"),
        ({"save_total_limit": 0}, "save_total_limit must be >= 1"),
        ({"batch_tokens": 0}, "batch_tokens must be >= 1"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"seed": 2**63}, r"seed must be below 2\*\*63"),
        ({"eval_strategy": "epochs"}, "unknown eval_strategy 'epochs'; did you mean 'epoch'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'; did you mean 'bf16'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(values, message):
    with pytest.raises(InputError, match=message) as caught:
        config(**values)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_together():
    with pytest.raises(InputError, match="missing --model, --data, --out"):
        TrainConfig.from_dict({})


def test_loss_settings_have_dotted_keys():
    found = config(**{"loss.temperature": 0.02, "loss.symmetric": True, "loss_settings": {"positive_from": 2}})
    assert found.loss_settings == {"temperature": 0.02, "symmetric": True, "positive_from": 2}
    assert {k: v for k, v in found.to_dict().items() if k == "loss" or k.startswith("loss.")} == {
        "loss": "infonce",
        "loss.positive_from": 2,
        "loss.symmetric": True,
        "loss.temperature": 0.02,
    }


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        config().seed = 3


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(1e-30, 1e30),
            "num_train_epochs": st.floats(1e-3, 100),
            "max_steps": st.integers(1, 10**9),
            "seed": st.integers(0, 2**63 - 1),
            "warmup_ratio": st.floats(0, 1),
            "rows": st.lists(st.text(max_size=8), max_size=3),
            "query_prompt": st.none() | st.text(max_size=20),
            "query_max_length": st.none() | st.integers(1, 512),
            "eval_full": st.booleans(),
            "loss.temperature": st.floats(1e-3, 10),
            "loss.symmetric": st.booleans(),
        },
    )
)
def test_it_survives_a_dict_and_yaml(values):
    found = config(**values)
    assert TrainConfig.from_dict(found.to_dict()) == found
    assert TrainConfig.from_dict(parse_yaml(dump_yaml(found.to_dict()))) == found


def test_every_field_of_the_interface_is_there():
    named = """
        learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps warmup_ratio
        weight_decay max_grad_norm eval_strategy eval_steps save_steps seed query_max_length document_max_length
        query_prompt document_prompt batch_tokens num_negatives
    """
    assert set(named.split()) <= {f.name for f in fields(TrainConfig)}


@pytest.mark.parametrize("given", [[64, 16], (64, 16), "64,16", "64 16", ["64,16"], ["64", "16"], [64.0, "16"]])
def test_dimensions_in_every_form_in_which_they_arrive(given):
    assert config(matryoshka_dims=given).matryoshka_dims == (64, 16)
    assert config(matryoshka_dims=given).to_dict()["matryoshka_dims"] == [64, 16]


def test_no_and_impossible_dimensions():
    assert config(matryoshka_dims=None).matryoshka_dims == config(matryoshka_dims=[]).matryoshka_dims == ()
    assert config(matryoshka_dims=64).matryoshka_dims == (64,)
    for wrong in ("sixty", [1.5], [True]):
        with pytest.raises(InputError, match=r"setting 'matryoshka_dims' got .*; wanted a whole number"):
            config(matryoshka_dims=wrong)
