"""Settings of feature rankers: defaults by scorer, what is refused, and the temperature of their losses."""

import pytest

from rankers.losses import LOSSES
from retrieval.errors import InputError
from retrieval.ltr_config import LtrConfig, build_ltr_loss


def config(**settings) -> LtrConfig:
    return LtrConfig.from_dict({"features": "train.txt", "out": "run", **settings})


def test_networks_and_trees_have_their_own_defaults():
    assert (config().loss, config().learning_rate) == ("softmax_ce", 1e-3)
    trees = config(scorer="lambdamart")
    assert (trees.loss, trees.learning_rate, trees.gain) == ("lambdarank", 0.1, "exp2")


@pytest.mark.parametrize("scorer", ["linear", "mlp", "context", "lambdamart"])
def test_settings_survive_the_way_through_yaml(scorer):
    given = config(scorer=scorer, hidden_sizes="64,32", valid="valid.txt", **{"loss.gain": "linear"})
    assert LtrConfig.from_dict(given.to_dict()) == given
    assert given.hidden_sizes == (64, 32)
    assert given.reads == ("train.txt", "valid.txt")


def test_what_each_scorer_is_built_from():
    assert config(scorer="linear").architecture(3) == {"features": 3, "hidden": [], "dropout": 0.1}
    assert config(scorer="mlp", hidden_sizes=[4]).architecture(3)["hidden"] == [4]
    context = config(scorer="context", blocks=1, heads=2, feed_forward=5).architecture(3)
    assert (context["blocks"], context["heads"], context["feed_forward"]) == (1, 2, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": "mpl"}, "unknown scorer 'mpl'; did you mean 'mlp'"),
        ({"normalisation": "z"}, "unknown normalisation 'z'"),
        ({"missing": "men"}, "unknown missing 'men'; did you mean 'mean'"),
        ({"hidden_sizes": [4, 0]}, "hidden_sizes must be numbers >= 1"),
        ({"hidden_sizes": []}, "scorer=mlp needs hidden_sizes"),
        ({"scorer": "context", "heads": 3}, "heads=3 do not divide 128"),
        ({"dropout": 1}, "dropout is a share of units"),
        ({"dropout": -0.1}, "dropout must be >= 0"),
        ({"num_trees": 0}, "num_trees must be >= 1"),
        ({"bagging_fraction": 0}, "bagging_fraction is a share above 0"),
        ({"feature_fraction": 1.1}, "feature_fraction is a share above 0"),
        ({"learning_rate": -1}, "learning_rate must be > 0"),
        ({"valid": "v", "eval_strategy": "no"}, "eval_strategy=no validates nothing"),
        ({"scorer": "lambdamart", "loss": "ranknet"}, "scorer=lambdamart has no loss 'ranknet'"),
        ({"scorer": "lambdamart", "loss.scale": 1}, "unknown setting loss.scale of lambdamart"),
        ({"scorer": "lambdamart", "loss.gain": "exp"}, "unknown loss.gain 'exp'"),
        ({"hiden_sizes": [4]}, "unknown setting 'hiden_sizes'; did you mean 'hidden_sizes'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        config(**settings)


def test_files_are_needed():
    with pytest.raises(InputError, match="missing --features"):
        LtrConfig.from_dict({"out": "run"})


def sharpness(loss) -> list[float]:
    return [term.settings.get("temperature") or term.settings["scale"] for term in loss.terms]


@pytest.mark.parametrize("name", [name for name, e in LOSSES.items() if e.several_positives and not e.state])
def test_every_loss_has_a_temperature_of_1(name):
    assert sharpness(build_ltr_loss(config(loss=name))) == [1]


def test_a_temperature_that_is_given_stays():
    assert sharpness(build_ltr_loss(config(loss="softmax_ce", **{"loss.temperature": 0.5}))) == [0.5]
    assert sharpness(build_ltr_loss(config(loss="2*softmax_ce", **{"loss.softmax_ce.scale": 3}))) == [3]
    both = config(loss="softmax_ce + 0.5*bixse", **{"loss.bixse.scale": 4})
    assert sharpness(build_ltr_loss(both)) == [1, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "softmaxce"}, "loss: unknown loss 'softmaxce'; did you mean 'softmax_ce'"),
        ({"loss": "infonce"}, "loss: infonce takes one relevant document in a list; softmax_ce takes several"),
        ({"loss": "isogclr"}, "loss: isogclr keeps a state of each query"),
        ({"loss.temperature": 0}, "loss: temperature must be > 0"),
        ({"loss.tempratur": 1}, "loss: unknown setting 'tempratur'"),
    ],
)
def test_losses_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build_ltr_loss(config(**settings))
