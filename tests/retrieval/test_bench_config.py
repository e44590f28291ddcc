"""Settings of a comparison: what is refused, and that every loss gets the same trials."""

import json
import math

import pytest
from bench_runs import config

from rankers.losses import LOSSES
from retrieval.bench_config import BenchConfig, Setting, build, sharpness
from retrieval.errors import InputError


def make(**changes) -> BenchConfig:
    return BenchConfig(**({"model": "m", "data": "d", "out": "o", "losses": ("infonce",)} | changes))


def test_every_loss_of_the_table_has_nine_trials_around_its_own_temperature():
    bench = make(losses=tuple(LOSSES))
    for loss in LOSSES:
        grid = bench.grid(loss)
        assert len(grid) == len({json.dumps(setting.to_dict()) for setting in grid}) == 9
        assert {setting.learning_rate for setting in grid} == set(bench.learning_rates)
        values = sorted({value for setting in grid for value in setting.loss_settings.values()})
        assert len(values) == 3
        assert math.isclose(values[2] / values[0], 9, rel_tol=1e-3)


def test_the_middle_of_the_grid_is_the_losss_default():
    for loss in ("infonce", "mw", "sl_at_k", "bixse", "ranknet"):
        name, default = sharpness(build(loss, {}))
        assert {s.loss_settings[f"{loss}.{name}"] for s in make(losses=(loss,)).grid(loss)} >= {default}


def test_scales_go_the_other_way():
    """Of equal rank in the grid, a temperature t and a scale 1/t."""
    warm = [setting.loss_settings["bixse.scale"] for setting in make(losses=("bixse",)).grid("bixse")[:3]]
    assert warm == [30, 10, 3.333]
    assert [s.loss_settings["mw.temperature"] for s in make(losses=("mw",)).grid("mw")[:3]] == [0.01667, 0.05, 0.15]


def test_given_temperatures_hold_for_every_loss():
    bench = make(losses=("infonce", "siglip"), temperatures=(0.02, 0.1), learning_rates=(1e-3,), trials=2)
    assert [s.loss_settings for s in bench.grid("infonce")] == [
        {"infonce.temperature": 0.02},
        {"infonce.temperature": 0.1},
    ]
    assert [s.loss_settings for s in bench.grid("siglip")] == [{"siglip.scale": 50.0}, {"siglip.scale": 10.0}]


def test_a_sum_is_tried_as_one_loss():
    bench = make(losses=("infonce", "bixse + 0.5*ranknet"))
    grid = bench.grid("bixse + 0.5*ranknet")
    assert len(grid) == 9
    assert grid[0].loss_settings == {"bixse.scale": 30.0, "ranknet.temperature": 0.01667}


def test_fewer_trials_are_those_nearest_to_the_middle():
    one = make(trials=1).grid("infonce")
    assert [(s.learning_rate, s.loss_settings) for s in one] == [(5e-5, {"infonce.temperature": 0.05})]
    five = make(trials=5).grid("infonce")
    assert {(s.learning_rate, s.loss_settings["infonce.temperature"]) for s in five} == {
        (5e-5, 0.05),
        (2e-5, 0.05),
        (1e-4, 0.05),
        (5e-5, 0.01667),
        (5e-5, 0.15),
    }


def test_heads_have_defaults_of_their_own():
    assert make().per_device_train_batch_size == 32
    heads = make(heads="mlp")
    assert (heads.per_device_train_batch_size, heads.num_train_epochs) == (128, 20)
    assert heads.learning_rates != make().learning_rates
    assert make(heads="mlp", num_train_epochs=3.0).num_train_epochs == 3


def test_settings_of_a_loss_go_to_it_alone():
    bench = make(losses=("sl_at_k", "infonce"), loss_settings={"sl_at_k.k": 20})
    assert all(setting.loss_settings["sl_at_k.k"] == 20 for setting in bench.grid("sl_at_k"))
    assert all("sl_at_k.k" not in setting.loss_settings for setting in bench.grid("infonce"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ()}, "no loss was given"),
        ({"losses": ("infonc",)}, "unknown loss 'infonc'; did you mean 'infonce'"),
        ({"losses": ("mw", "mw")}, "names 'mw' twice"),
        ({"trials": 10}, "the grid holds 3 learning rates × 3 temperatures"),
        ({"trials": 0}, "trials must be >= 1"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"heads": "liner"}, "unknown heads 'liner'; did you mean 'linear'"),
        ({"heads": "mlp", "sides": "document"}, "unknown sides 'document'"),
        ({"learning_rates": (0.0,)}, "learning_rates must be numbers > 0"),
        ({"temperatures": (math.nan,)}, "temperatures must be numbers > 0"),
        ({"label_noise": 1.0}, "0 to 1; got 1.0"),
        ({"label_noise": 0.2, "rows": ("a",)}, "label_noise changes judgements"),
        ({"folds": 1}, "one fold leaves nothing to train on"),
        ({"folds": 3, "rows": ("a",)}, "folds divide the queries"),
        ({"measures": ("nDGC@10",)}, "did you mean 'nDCG'"),
        ({"loss_settings": {"infonce.temperature": 0.1}}, "the trials vary infonce.temperature"),
        ({"loss_settings": {"k": 20}}, "belongs to which loss"),
        ({"loss_settings": {"infonc.symmetric": True}}, "did you mean 'infonce'"),
        ({"loss_settings": {"infonce.symetric": True}}, "did you mean 'symmetric'"),
    ],
)
def test_impossible_settings_are_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_settings_survive_json():
    bench = config("m", "d", "o", loss_settings={"bixse.bias": "learned"})
    values = json.loads(json.dumps(bench.to_dict()))
    again = BenchConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    assert again == bench


def test_a_setting_reads_in_a_line():
    assert str(Setting("mw", 3e-4, {"mw.temperature": 0.05})) == "lr=0.0003, temperature=0.05"
