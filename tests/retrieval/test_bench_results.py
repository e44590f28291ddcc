"""Results of a comparison from tiny numbers that can be checked by hand, and the table of them."""

import pytest
from bench_runs import config

from retrieval.bench_results import summary, table_lines
from retrieval.comparison import averaged, corrected_p
from retrieval.errors import InputError
from retrieval.learning_curves import best_curves, draw
from retrieval.peak_memory import forget_peak, peak_mb
from retrieval.statistics import randomisation_test

N = 12  # queries
TWO = {"measures": ("nDCG@10", "P@5"), "losses": ("infonce", "mw", "bixse")}


def trial(loss, dev, rate=1e-3, part="", **more):
    settings = {"key": f"{loss}{rate}{part}", "part": part, "loss": loss, "learning_rate": rate, "loss_settings": {}}
    return settings | {"seed": 0, "dev": dev, "seconds": 2.0, "peak_mb": 100.0, "curve": [[0, 0.1], [5, dev]]} | more


def final(loss, seed, values, part="", fitted=True, **more):
    per_query = {f"{part}q{i}": value for i, value in enumerate(values)}
    interval = {"value": 0.9 + 0.02 * seed, "low": 0.8, "high": 0.95}
    return {
        "key": f"{loss}{seed}{part}",
        "part": part,
        "loss": loss,
        "learning_rate": 1e-3,
        "loss_settings": {},
        "seed": seed,
        "dev": 0.5,
        "seconds": 9.0,
        "peak_mb": 999.0,
        "test": {"nDCG@10": per_query, "P@5": {query: 0.2 for query in per_query}},
        "auc": interval,
        "ece": interval,
        "probability": {"scale": 1.0, "bias": 0.0, "fitted_on_dev": fitted},
    } | more


def untrained(values=(0.1,) * N, part=""):
    record = final("untrained", 0, values, part)
    return {name: value for name, value in record.items() if name not in ("ece", "probability", "dev")}


def three_seeds():
    """Infonce 0.4, 0.5, 0.6 in every query; mw better in each by 0.2; bixse as infonce."""
    tests = [untrained()]
    for seed, value in enumerate((0.4, 0.5, 0.6)):
        tests += [final("infonce", seed, [value] * N), final("bixse", seed, [value] * N, fitted=False)]
        tests += [final("mw", seed, [value + 0.2] * N)]
    return tests


def found(tests=None, **changes):
    settings = config("m", "d", "o", **(TWO | {"seeds": 3} | changes))
    trials = [trial(loss, dev) for loss, dev in (("infonce", 0.5), ("mw", 0.6), ("bixse", None))]
    return summary(settings, trials, tests or three_seeds(), "abc")


def test_seeds_are_averaged_first():
    one = found()["methods"]["infonce"]["measures"]["nDCG@10"]
    assert one["value"] == pytest.approx(0.5)
    assert (one["low"], one["high"]) == pytest.approx((0.5, 0.5))  # every query has the same mean
    assert one["seeds"] == pytest.approx([0.4, 0.5, 0.6])


def test_differences_are_paired_and_p_is_holms_over_the_losses():
    methods = found()["methods"]
    assert "difference" not in methods["infonce"]
    assert methods["mw"]["difference"]["value"] == pytest.approx(0.2)
    assert methods["mw"]["difference"]["low"] == pytest.approx(0.2)
    raw = randomisation_test([0.7] * N, [0.5] * N)
    assert methods["mw"]["difference"]["p"] == pytest.approx(2 * raw)  # Holm: the smaller of two
    assert methods["bixse"]["difference"]["p"] == 1.0
    assert methods["untrained"]["difference"]["value"] == pytest.approx(-0.4)
    assert methods["untrained"]["difference"]["p"] is None


def test_two_seeds_support_no_claim():
    tests = [record for record in three_seeds() if record["seed"] < 2]
    results = found(tests, seeds=2)
    assert results["methods"]["mw"]["difference"]["p"] is None
    assert "fewer than 3 seeds support no claim: no p-values" in table_lines(results)


def test_pooled_measures_are_averaged_over_seeds():
    methods = found()["methods"]
    assert methods["mw"]["auc"]["value"] == pytest.approx(0.92)
    assert methods["mw"]["ece"]["low"] == pytest.approx(0.8)
    assert methods["untrained"]["ece"] is None


def test_time_and_memory_are_the_trials():
    methods = found()["methods"]
    assert (methods["mw"]["seconds"], methods["mw"]["peak_mb"]) == (2.0, 100.0)
    assert methods["untrained"]["seconds"] is None
    assert methods["bixse"]["failed_trials"] == 1


def test_folds_are_pooled_by_seed():
    tests = [untrained(part="a"), untrained(part="b")]
    for loss in TWO["losses"]:
        tests += [final(loss, 0, [0.2, 0.4], "a"), final(loss, 0, [0.6] * 3, "b")]
    tests[:2] = [untrained((0.1, 0.1), "a"), untrained((0.1,) * 3, "b")]
    results = found(tests, seeds=1, folds=2)
    assert results["queries"] == 5
    assert results["methods"]["mw"]["measures"]["nDCG@10"]["value"] == pytest.approx((0.2 + 0.4 + 3 * 0.6) / 5)
    assert results["methods"]["mw"]["chosen"] == {"a": "lr=0.001", "b": "lr=0.001"}
    assert "2 folds of test: 5 queries" in "\n".join(table_lines(results))


def test_the_table_by_hand():
    lines = table_lines(found())
    heads, first, _, mw, bixse = lines[:5]
    assert " ".join(heads.split()) == (
        "loss nDCG@10 [95 %] seeds − infonce [95 %] p (Holm) P@5 AUC ECE dev s/trial peak MB chosen"
    )
    assert first.startswith("untrained  0.1000 [0.1000, 0.1000]")
    assert "0.7000 [0.7000, 0.7000]" in mw
    assert "0.6000–0.8000" in mw
    assert "+0.2000 [+0.2000, +0.2000]" in mw
    assert "~0.9200" in mw
    assert "0.9200" in bixse
    assert "~" not in bixse
    assert "bixse: 1 of its trials failed (not finite)" in lines
    assert "12 queries, each averaged over 3 seeds first" in lines[6]
    assert all(line == line.rstrip() for line in lines)


def test_the_noise_is_told():
    assert "label noise: 20 % of the training positives were exchanged" in table_lines(found(label_noise=0.2))


def test_averages_need_the_same_queries():
    assert averaged([{"a": 1.0, "b": 0.0}, {"b": 1.0, "a": 0.0}]) == {"a": 0.5, "b": 0.5}
    with pytest.raises(InputError, match="cannot pair"):
        averaged([{"a": 1.0}, {"b": 1.0}])


def test_no_pairs_have_no_p():
    assert corrected_p([], {}) == {}


def test_the_best_trials_curve_is_drawn():
    trials = [trial("mw", 0.4), trial("mw", 0.6, rate=1e-2), trial("infonce", None), trial("mw", 0.9, part="fold2")]
    assert best_curves(trials) == {"mw": [(0, 0.1), (5, 0.6)]}
    assert best_curves([]) == {}


def test_a_picture_is_the_same_bytes_every_time(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    curves = {f"loss{i}": [(0, 0.1), (10, 0.1 + i / 100)] for i in range(12)}
    for name in ("a.png", "b.png"):
        draw(curves, tmp_path / name, title="tiny")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data == (tmp_path / "b.png").read_bytes()


def test_a_picture_names_the_extra_that_it_needs(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib is not installed; run: pip install 'rankwright\[bench\]'"):
        draw({}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_peak_grows_with_what_is_held_and_can_be_forgotten():
    import numpy as np

    forget_peak()
    before = peak_mb()
    held = np.ones(8_000_000)  # 61 MiB
    assert peak_mb() >= before + 50
    del held
    assert before > 5
