"""Settings of a reranker's run: what they are checked for before anything is read."""

from dataclasses import fields

import pytest

from retrieval.errors import InputError
from retrieval.loop_config import LoopConfig
from retrieval.reranker_config import RerankerConfig
from retrieval.yamlfiles import dump_yaml, parse_yaml

BASE = {"model": "m", "data": "d", "out": "o"}


def config(**values) -> RerankerConfig:
    return RerankerConfig.from_dict(BASE | values)


def test_the_defaults_stand_for_themselves():
    assert config() == RerankerConfig(**BASE)
    found = config()
    assert (found.loss, found.per_device_train_batch_size, found.num_positives, found.num_negatives) == (
        "softmax_ce",
        16,
        1,
        7,
    )


def test_it_has_every_setting_of_the_loop_with_the_same_meaning():
    ours = {f.name: f for f in fields(RerankerConfig)}
    for f in fields(LoopConfig):
        assert ours[f.name].type == f.type
        if f.name not in ("loss", "per_device_train_batch_size"):
            assert ours[f.name].default == f.default


def test_settings_reload_from_yaml():
    given = config(
        **{
            "loss": "bixse + 0.5*ranknet",
            "loss.bixse.scale": 2.0,
            "architecture": "set",
            "novelty": True,
            "rows": ["a", "b"],
        }
    )
    assert RerankerConfig.from_dict(parse_yaml(dump_yaml(given.to_dict()))) == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": ""}, "missing --model"),
        ({"num_negative": 3}, "unknown setting 'num_negative'; did you mean 'num_negatives'"),
        ({"num_positives": 0}, "num_positives must be >= 1, got 0"),
        ({"num_negatives": -1}, "num_negatives must be >= 0, got -1"),
        ({"num_negatives": 0}, "num_positives=1 with num_negatives=0 makes lists of one document; raise either"),
        ({"num_pairs": 0}, "num_pairs must be >= 1, got 0"),
        ({"set_size": 1}, "set_size must be at least 2 documents, or 0 for lists as they are; got 1"),
        ({"set_size": 8, "architecture": "classifier"}, "set_size needs architecture=set"),
        ({"eval_depth": 1}, "eval_depth must be >= 2, got 1"),
        ({"eval_queries": 0}, "eval_queries must be >= 1, got 0"),
        ({"batch_tokens": 0}, "batch_tokens must be >= 1, got 0"),
        ({"batch_tokens": "many"}, "setting 'batch_tokens' got 'many'; wanted a whole number"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"architecture": "sets"}, "unknown architecture 'sets'; did you mean 'set'"),
        ({"architecture": "pair"}, "unknown architecture 'pair'"),
        ({"novelty": "yes"}, "setting 'novelty' got 'yes'; wanted true or false"),
        ({"novelty": True, "architecture": "classifier"}, "novelty needs architecture=set, .*; got classifier"),
        ({"learning_rate": 0}, "learning_rate must be > 0, got 0"),
        ({"eval_strategy": "epochs"}, "unknown eval_strategy 'epochs'; did you mean 'epoch'"),
    ],
)
def test_impossible_settings_are_refused_with_what_was_wanted(values, message):
    with pytest.raises(InputError, match=message) as caught:
        config(**values)
    assert "\n" not in str(caught.value)


def test_lists_may_hold_relevant_documents_alone():
    assert config(num_positives=2, num_negatives=0).num_negatives == 0


def test_what_a_run_reads_may_not_be_deleted_with_an_old_one():
    assert config().reads == ("m",)
    assert config(run="a.run").reads == ("m", "a.run")
