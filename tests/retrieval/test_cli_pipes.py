"""Readers that go away, terminals, and signals: what a command does to the world around it."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from tiny_files import queries

from retrieval.cli.main import main
from retrieval.embeddings import load_embeddings

COMMAND = [sys.executable, "-c", "import sys; from retrieval.cli import main; sys.exit(main())"]


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch):
    """Run a command in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return run


# --- pipes and terminals ---------------------------------------------------------------------------------------------


def bm25_run(tiny_collection, *more) -> list[str]:
    return [*COMMAND, "search", "--bm25", "--data", str(tiny_collection), *more]


def test_a_reader_that_goes_away_is_no_error(tmp_path, tiny_collection):
    """As with `| head`: a long run, of which one line is read."""
    Path(tmp_path / "many.tsv").write_text(
        "".join(f"q{n}\t{text}\n" for n, text in enumerate(list(queries().values()) * 40))
    )
    command = bm25_run(tiny_collection, "--queries", str(tmp_path / "many.tsv"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("q0 Q0 ")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0


def test_a_reader_that_was_never_there_is_no_error(tiny_collection):
    """A few lines stay in the buffer until the very end."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    ended = subprocess.run(
        bm25_run(tiny_collection, "otter"), stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(write_end)
    assert (ended.returncode, ended.stderr) == (0, "")


def with_terminal(command) -> tuple[int, str, str]:
    """Run a command whose stderr is a terminal; returns (exit status, stdout, stderr)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a new one has no columns
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
    out = process.stdout.read()
    process.stdout.close()
    os.close(ours)
    return process.wait(timeout=60), out, shown.decode()


def test_progress_is_for_terminals_only(tiny_collection):
    command = bm25_run(tiny_collection, "--split", "test", "--json")
    status, out, err = with_terminal(command)
    assert status == 0
    assert "reading corpus.jsonl" in err
    assert "docs/s" in err
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, out, "")
    assert len(json.loads(out)) == 12
    assert with_terminal([*command, "--quiet"]) == (0, out, "")


SLOW_ENCODE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.path.insert(0, {tests!r})
from retrieval import embeddings, encoder
from retrieval.cli import main
from stub_encoder import StubEncoder

class Slow(StubEncoder):
    def encode_blocks(self, blocks, side, **settings):
        for found in super().encode_blocks(blocks, side, **settings):
            yield found
            time.sleep({pause})

embeddings.PART = 4
encoder.Encoder.load = lambda *arguments, **settings: Slow()
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_files_and_says_how_to_go_on(tmp_path, tiny_collection, number):
    def encode(*more, pause):
        arguments = ["encode", "--model", "m", "--data", str(tiny_collection), "--out", "d", *more]
        code = SLOW_ENCODE.format(tests=str(Path(__file__).parent), arguments=arguments, pause=pause)
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    process = encode(pause=0.2)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".d.parts/part-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    hint = "every file written is whole; go on with the same command and --resume"
    assert err.strip() == f"stopped by {number.name}; {hint}"
    assert not (tmp_path / "d").exists()
    assert 2 <= len(list(tmp_path.glob(".d.parts/part-*"))) < 15
    process = encode("--resume", pause=0)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["d"]
    assert len(load_embeddings(tmp_path / "d").ids) == 60


def test_the_verbs_explain_themselves(cli):
    for verb in ("encode", "index", "search"):
        status, out, err = cli(verb, "--help")
        assert (status, err) == (0, "")
        assert f"rankwright {verb} " in out.partition("examples:")[2]
