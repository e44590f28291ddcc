"""The table of losses, `build`, and every way to ask for something impossible."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch

from rankers.losses import LOSSES, LossEntry, RankingLoss, build

every_name = pytest.mark.parametrize("name", LOSSES)
BINARY = [name for name, entry in LOSSES.items() if entry.labels == "binary"]


def matrix(rows=3, columns=4):
    return torch.rand(rows, columns), torch.eye(rows, columns)


def test_the_keys_are_the_names_and_are_fixed():
    assert all(key == entry.name == entry.fn.__name__ for key, entry in LOSSES.items())
    assert {"infonce", "bixse", "mw", "sl_at_k", "decoupled_softmax", "softmax_ce"} <= set(LOSSES)
    with pytest.raises(TypeError):
        LOSSES["mine"] = LOSSES["mw"]


@every_name
def test_an_entry_says_what_a_user_must_know(name):
    entry = LOSSES[name]
    assert all(isinstance(text, str) and text for text in (entry.use, entry.cost, entry.paper, entry.needs))
    assert entry.labels in ("binary", "probability", "grade", "teacher")
    for section in ("Args:", "Returns:", "Raises:", "Source:", "(queries, docs)", "zero gradient"):
        assert section in inspect.getdoc(entry.fn)


@every_name
def test_defaults_are_those_of_the_function(name):
    entry = LOSSES[name]
    scores, labels = matrix()
    loss = build(name)
    assert loss.settings == dict(entry.defaults)
    assert torch.equal(loss(scores, labels), entry.fn(scores, labels))
    assert set(entry.defaults) | {"scale", "temperature"} == set(entry.settings)
    in_signature = {key: parameter.default for key, parameter in inspect.signature(entry.fn).parameters.items()}
    for key, value in entry.defaults.items():
        assert in_signature[key] in (value, None)  # temperature or scale: None stands for the default


@every_name
def test_temperature_or_scale_never_both(name):
    scores, labels = matrix()
    torch.testing.assert_close(build(name, temperature=0.2)(scores, labels), build(name, scale=5)(scores, labels))
    assert "temperature" not in build(name, scale=5).settings
    assert "scale" not in build(name, temperature=0.2).settings
    with pytest.raises(ValueError, match=r"temperature=0.2 and scale=5"):
        build(name, temperature=0.2, scale=5)
    with pytest.raises(ValueError, match="give one"):
        LOSSES[name].fn(scores, labels, temperature=0.2, scale=5)


@every_name
@pytest.mark.parametrize("key", ["temperature", "scale"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "warm", True, [1], torch.ones(2)])
def test_impossible_temperatures_are_refused_at_build(name, key, value):
    with pytest.raises(ValueError, match=f"{key} must be"):
        build(name, **{key: value})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("info_nce", "infonce"), ("softmax", "softmax_ce"), ("decoupled", "decoupled_softmax")],
)
def test_an_unknown_loss_names_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown loss {name!r}; did you mean {nearest!r}"):
        build(name)
    with pytest.raises(ValueError, match="known: " + ", ".join(sorted(LOSSES))):
        build("zzz")


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ValueError, match="unknown setting 'temprature' of mw; did you mean 'temperature'"):
        build("mw", temprature=0.05)
    with pytest.raises(ValueError, match="unknown setting 'symetric' of infonce; did you mean 'symmetric'"):
        build("infonce", symetric=True)
    with pytest.raises(ValueError, match="unknown setting 'where' of bixse"):
        build("bixse", where=None)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("infonce", {"symmetric": "false"}, "symmetric must be true or false, got 'false'"),
        ("infonce", {"positive_from": 0}, "positive_from must be > 0, got 0"),
        ("mw", {"positive_from": "1"}, "positive_from must be a finite number"),
        ("bixse", {"keep_empty_rows": 1}, "keep_empty_rows must be true or false"),
        ("softmax_ce", {"list_weight": "mean"}, "list_weight must be one of equal, sum, got 'mean'"),
        ("mw", {"reduction": "max"}, "reduction must be one of mean, paper_sum, sum, got 'max'"),
        ("mw", {"reduction": "sum"}, "reduction='sum' belongs to a call"),
        ("infonce", {"reduction": "sum"}, "unknown setting 'reduction' of infonce"),
    ],
)
def test_impossible_settings_are_refused_at_build(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, **settings)


@every_name
@pytest.mark.parametrize(
    ("scores", "labels", "where", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(2, 4),
            None,
            r"scores \(2, 3\) and labels \(2, 4\) must have the same",
        ),
        (
            torch.zeros(3),
            torch.zeros(3),
            None,
            r"scores must be float \(queries, docs\), got torch.float32 \(3,\)",
        ),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), None, "got torch.int64"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3),
            torch.ones(2, 3),
            r"where must be bool \(2, 3\), got torch.float32",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3),
            torch.ones(3, 2) > 0,
            r"where must be bool \(2, 3\), .* \(3, 2\)",
        ),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(name, scores, labels, where, message):
    with pytest.raises(ValueError, match=message):
        build(name)(scores, labels, where)


@every_name
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_no_loss_takes_negative_or_infinite_labels(name, bad):
    scores, labels = matrix()
    labels[1, 2] = bad
    if bad == -1 and LOSSES[name].labels == "teacher":  # whose scores may be of any sign
        assert build(name)(scores, labels).isfinite()
        return
    with pytest.raises(ValueError, match=rf"labels\[1, 2\] is {bad:g}: "):
        build(name)(scores, labels)
    with pytest.raises(ValueError, match=r"labels\[1, 2\]"):
        build(name).count(labels)
    where = torch.ones(3, 4, dtype=torch.bool)
    where[1, 2] = False
    assert build(name)(scores, labels, where).isfinite()


@pytest.mark.parametrize("name", BINARY)
def test_a_fraction_is_no_binary_label_unless_the_threshold_is_one(name):
    scores, labels = matrix()
    labels[0, 0] = 0.7
    with pytest.raises(ValueError, match=r"labels\[0, 0\] is 0.7: binary labels .* positive_from"):
        build(name)(scores, labels)
    torch.testing.assert_close(build(name, positive_from=0.5)(scores, labels), build(name)(scores, labels >= 0.5))


def test_a_grade_is_no_probability():
    scores, labels = matrix()
    labels[2, 0] = 2
    with pytest.raises(ValueError, match=r"labels\[2, 0\] is 2: labels must be probabilities in \[0, 1\]; divide"):
        build("bixse")(scores, labels)
    build("softmax_ce")(scores, labels)
    build("softmax_ce")(scores, labels / 3)


@every_name
def test_a_loss_can_be_printed_copied_and_moved(name):
    loss = build(name, temperature=0.2)
    assert f"{name}, " in repr(loss)
    assert "temperature=0.2" in repr(loss)
    scores, labels = matrix()
    twin = copy.deepcopy(loss).to("cpu")
    assert torch.equal(twin(scores, labels), loss(scores, labels))
    assert list(loss.parameters()) == []


def test_needs_follow_the_settings():
    assert build("infonce").needs == "rows"
    assert build("infonce", symmetric=True).needs == "rows + statistic"
    assert build("bixse").needs == "rows + statistic"
    assert build("mw").needs == "rows + statistic"
    assert build("mw", method="exact").needs == "whole matrix"


@pytest.mark.parametrize(
    ("name", "settings"), [("mw", {}), ("mw", {"method": "exact"}), ("infonce", {"symmetric": True})]
)
def test_a_part_of_the_rows_is_refused_where_they_are_coupled(name, settings):
    scores, labels = matrix()
    loss = build(name, **settings)
    totals = loss.totals(loss.tally(labels))
    torch.testing.assert_close(loss.share(scores, labels, totals=totals), loss(scores, labels))
    with pytest.raises(ValueError, match=f"{name} with these settings needs the whole matrix"):
        loss.share(scores[:2], labels[:2], totals=totals)


def test_shares_of_micro_batches_with_their_own_documents_add_up_too():
    """Accumulation without a shared matrix: the counts of the micro-batches are added before any backward."""
    loss = build("infonce")
    parts = [(torch.rand(n, n + 2), torch.eye(n, n + 2)) for n in (4, 1, 3)]
    count = torch.stack([loss.count(labels) for _, labels in parts]).sum()
    got = sum(loss.share(scores, labels, totals={"count": count}) for scores, labels in parts)
    wanted = sum(loss(scores, labels) * len(labels) for scores, labels in parts) / 8
    torch.testing.assert_close(got, wanted)


def test_an_entry_of_ones_own_works_without_the_table():
    def hinge(scores, labels, *, where=None, reduction="mean", margin=1.0):
        return (margin - scores[labels > 0]).clamp_min(0).sum() / (1 if reduction == "sum" else (labels > 0).sum())

    entry = LossEntry(
        name="hinge",
        fn=hinge,
        labels="binary",
        use="a test",
        needs="rows",
        cost="linear",
        paper="none",
        defaults={"margin": 1.0},
        count=lambda labels, where=None, **_: (labels > 0).sum(),
    )
    scores, labels = matrix()
    loss = RankingLoss(entry, margin=2.0)
    totals = loss.totals(loss.tally(labels))
    shares = [loss.share(s, y, totals=totals) for s, y in zip(scores.split(1), labels.split(1), strict=True)]
    torch.testing.assert_close(sum(shares), loss(scores, labels))


def test_importing_rankers_loads_no_torch():
    code = "import sys, rankers; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_losses_needs_torch_only():
    code = (
        "import sys, rankers.losses, rankers.lists;"
        "sys.exit(bool({'transformers', 'sentence_transformers', 'scipy', 'faiss', 'retrieval'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
