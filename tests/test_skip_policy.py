"""A run with a skipped test fails, unless what is missing may be missing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


def run_pytest(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=100, check=False)
    return ended.returncode, ended.stdout


@pytest.fixture
def project(tmp_path) -> Path:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_good_and_bad_reasons(project):
    (project / "test_good.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_shared(): pytest.skip('needs ../shared, which is not on this machine')\n"
        "def test_extra(): pytest.importorskip('no_such_module', reason='needs the irds extra')\n"
        "def test_bracket(): pytest.skip('needs the [demo] extra')\n"
        "@pytest.mark.xfail\n"
        "def test_known(): assert False\n"
    )
    status, out = run_pytest(project)
    assert status == 0
    assert out.count("SKIPPED [1]") == 3  # -ra lists every skip with its reason
    assert "without a good reason" not in out

    (project / "test_bad.py").write_text(
        "import pytest\n"
        "def test_lazy(): pytest.skip('does not work today')\n"
        "@pytest.mark.skipif(True, reason='root may write everywhere')\n"
        "def test_marked(): pass\n"
        "def test_module(): pytest.importorskip('no_such_module')\n"
        "@pytest.fixture\n"
        "def thing(): pytest.skip('no thing')\n"
        "def test_fixture(thing): pass\n"
    )
    (project / "test_bad_module.py").write_text("import pytest\npytest.skip('all of it', allow_module_level=True)\n")
    status, out = run_pytest(project)
    assert status == 1
    _, _, summary = out.partition("skipped without a good reason, so this run failed")
    for name, reason in (
        ("test_bad.py::test_lazy", "does not work today"),
        ("test_bad.py::test_marked", "root may write everywhere"),
        ("test_bad.py::test_module", "could not import 'no_such_module'"),
        ("test_bad.py::test_fixture", "no thing"),
        ("test_bad_module.py", "all of it"),
    ):
        assert any(name in line and reason in line for line in summary.splitlines())
    assert not any("test_good.py" in line and "needs" in line for line in summary.splitlines() if "SKIPPED" not in line)


def test_a_run_of_nothing_but_a_bad_skip_fails_and_a_failure_stays_one(project):
    (project / "test_bad.py").write_text("import pytest\ndef test_lazy(): pytest.skip('later')\n")
    assert run_pytest(project)[0] == 1
    (project / "test_failing.py").write_text("def test_fails(): assert False\n")
    assert run_pytest(project)[0] == 1
    assert run_pytest(project, "--no-such-flag")[0] == 4
