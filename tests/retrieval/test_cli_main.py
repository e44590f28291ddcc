import io
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.cli.main import VERBS, main
from retrieval.errors import InputError

cli = sys.modules["retrieval.cli.main"]  # `retrieval.cli` has a function of that name


def verb(monkeypatch, run):
    """Make `rankwright data` run `run(args)`."""

    def configure(parser):
        parser.add_argument("--resume", action="store_true")
        parser.add_argument("--overwrite", action="store_true")

    module = SimpleNamespace(__doc__="Help.", EXAMPLES="examples:\n  rankwright data", configure=configure, run=run)
    monkeypatch.setattr(cli, "import_module", lambda name: module)


def raising(error):
    def run(args):
        raise error

    return run


# --- the map, help, version -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_alone_it_prints_the_map(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name, summary in VERBS.items():
        assert f"  {name}" in out
        assert summary in out


@pytest.mark.parametrize("arguments", [["--version"], *([name, "--version"] for name in VERBS)])
def test_version(capsys, arguments):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("rankwright ")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_examples(capsys, name):
    assert main([name, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"usage: rankwright {name}" in out
    assert f"examples:\n  rankwright {name}" in out
    assert "--config" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian'; did you mean 'train'"),
        (["TRAIN"], "unknown verb 'TRAIN'; known: audit, bench-losses, convert, data, "),
        (["-v"], "unknown verb '-v'; known: "),
        ([""], "unknown verb ''; known: "),
        (["train", "--modle", "x"], "unknown flag '--modle'; did you mean '--model'"),
        (["data"], "the following arguments are required: "),
        (["data", "--set", "x=1", "y"], "unknown setting 'x'"),
        (["train", "--config", "/nowhere"], "/nowhere: no such file"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


# --- failures ---------------------------------------------------------------------------------------------------------


class OurError(RuntimeError):
    """Not the user's fault."""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("is wrong", path="x.jsonl", line=3), 2, "error: x.jsonl:3: is wrong"),
        (ValueError("several\nlines   here"), 2, "error: several lines here"),
        (FileNotFoundError(2, "No such file or directory", "gone.txt"), 2, "No such file or directory: 'gone.txt'"),
        (FileExistsError(17, "File exists", "there"), 2, "File exists: 'there'"),
        (NotADirectoryError(20, "Not a directory", "x"), 2, "Not a directory"),
        (IsADirectoryError(21, "Is a directory", "x"), 2, "Is a directory"),
        (PermissionError(13, "Permission denied", "secret"), 1, "Permission denied: 'secret'"),
        (OSError(28, "No space left on device", "out"), 1, "No space left on device"),
        (OurError("it broke"), 1, "error: OurError: it broke  (RANKWRIGHT_TRACEBACK=1 shows where)"),
        (KeyError("name"), 1, "error: KeyError: 'name'"),
        (MemoryError(), 1, "error: MemoryError"),
        (RecursionError("too deep"), 1, "error: RecursionError: too deep"),
        (AssertionError(), 1, "error: AssertionError"),
    ],
)
def test_every_failure_is_one_line_and_a_status(monkeypatch, capsys, error, status, line):
    verb(monkeypatch, raising(error))
    assert main(["data"]) == status
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_a_traceback_comes_only_when_asked_for(monkeypatch, capsys):
    verb(monkeypatch, raising(OurError("it broke")))
    monkeypatch.setenv("RANKWRIGHT_TRACEBACK", "1")
    assert main(["data"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "name"), [(KeyboardInterrupt(), 130, "SIGINT"), (cli.Terminated(), 143, "SIGTERM")]
)
def test_an_interrupt_has_its_status_and_a_word_on_the_files(monkeypatch, capsys, error, status, name):
    verb(monkeypatch, raising(error))
    assert main(["data"]) == status
    assert capsys.readouterr().err == f"\nstopped by {name}; every file written is whole\n"


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ([], "; go on with the same command and --resume"),
        (["--resume"], ""),
        (["--overwrite"], "; go on with --resume instead of --overwrite"),
    ],
)
def test_how_to_go_on_is_said_where_one_can(monkeypatch, capsys, flags, hint):
    verb(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["train", *flags]) == 130
    assert capsys.readouterr().err == f"\nstopped by SIGINT; every file written is whole{hint}\n"


def test_what_goes_on_by_itself_says_so(monkeypatch, capsys):
    verb(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["mine", "--overwrite"]) == 130
    hint = "go on with the same command"
    assert capsys.readouterr().err == f"\nstopped by SIGINT; every file written is whole; {hint}\n"


def test_sigterm_is_an_exception_in_a_verb_and_nowhere_else(monkeypatch, capsys):
    cleaned = []

    def run(args):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    verb(monkeypatch, run)
    assert main(["data"]) == 143
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_sigterm_stays_ignored(monkeypatch):
    verb(monkeypatch, lambda args: signal.raise_signal(signal.SIGTERM) or 0)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert main(["data"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_runs_in_another_thread(monkeypatch):
    verb(monkeypatch, lambda args: 7)
    found = []
    thread = threading.Thread(target=lambda: found.append(main(["data"])))
    thread.start()
    thread.join()
    assert found == [7]


# --- what is printed where --------------------------------------------------------------------------------------------


def test_logs_go_to_stderr_and_warnings_are_marked(monkeypatch, capsys):
    def run(args):
        logging.getLogger("retrieval.somewhere").info("reading")
        logging.getLogger("indexes").warning("careful")
        logging.getLogger("rankers").error("worse")
        print("the result")
        return 0

    verb(monkeypatch, run)
    assert main(["data"]) == 0
    assert capsys.readouterr() == ("the result\n", "reading\nwarning: careful\nerror: worse\n")
    assert main(["data", "--quiet"]) == 0
    assert capsys.readouterr() == ("the result\n", "warning: careful\nerror: worse\n")


def test_deprecations_of_other_packages_are_not_the_users_business(monkeypatch, capsys):
    def run(args):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return 0

    verb(monkeypatch, run)
    with warnings.catch_warnings():
        assert main(["data"]) == 0
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_gone_is_no_error(monkeypatch):
    read, write = os.pipe()
    os.close(read)

    class Gone(io.StringIO):
        def fileno(self):
            return write

    verb(monkeypatch, raising(BrokenPipeError()))
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["data"]) == 0
    os.close(write)


def test_the_command_line_needs_no_torch():
    code = (
        "import sys; from retrieval.cli import main\n"
        "sys.modules['torch'] = None\n"
        "for verb in ('train', 'data', 'evaluate'):\n"
        "    assert main([verb, '--help']) == 0\n"
        "assert main(['train', '--lerning-rate', '1']) == 2\n"
        "assert 'transformers' not in sys.modules and 'sentence_transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


words = st.sampled_from([*VERBS, "--model", "--data", "--out", "--set", "--config", "--help", "-h", "--json", "--", "-",
                         "x", "a=b", "loss.temperature=2", "seed=x", "--seed", "-1", "--resume", "--overwrite", "--k",
                         "--rows", "--index", "--eval-full", "--no-eval-full", "--quiet", "\x00", "é", ""])  # fmt: skip


@given(st.lists(words | st.text(max_size=5), max_size=6))
def test_no_arguments_whatever_give_a_traceback(arguments):
    # model, data and out that cannot exist: nothing is ever read or written
    verbs = ("train", "selftest")
    fixed = ["--model", "/nowhere/m", "--data", "/nowhere/d", "--out", "/nowhere/out"]
    fixed = fixed if arguments and arguments[0] in verbs else []
    assert main([*arguments, *fixed]) in (0, 2)
