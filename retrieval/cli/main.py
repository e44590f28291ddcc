"""Find the verb, read its settings, run it, and turn every failure into one line and an exit status."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import NoReturn

from retrieval.cli.flags import add_settings_flags
from retrieval.cli.settings import apply_settings
from retrieval.errors import InputError, did_you_mean
from retrieval.freed_memory import keep_freed_memory
from retrieval.progress import set_quiet

# verb → what it does; the module is retrieval.cli.<verb>, dashes as underscores, imported only when the verb is used.
VERBS: dict[str, str] = {
    "data": "read a collection or training rows, count everything, report every defect",
    "convert": "turn qrels, runs, rows and collections from one format into another",
    "train": "train a dual encoder",
    "train-reranker": "train a cross-encoder or a Set-Encoder on lists of documents",
    "train-ltr": "train a ranker on features: a network or LightGBM's trees",
    "encode": "write the embeddings of a collection's documents or queries",
    "index": "build a FAISS index",
    "search": "search an index or BM25, by hand or for a whole split",
    "rerank": "score the best documents of a run again with a reranker",
    "fuse": "make one run of several, by ranks or by scores",
    "features": "write features of a run for learning to rank",
    "mine": "find hard negatives with a model, BM25 or both",
    "audit": "estimate how many mined negatives are relevant after all, by rank",
    "label": "turn a reranker's scores over a run into training rows for a dual encoder",
    "evaluate": "measure a run against qrels, with intervals",
    "losses": "list the losses: labels, use, cost, paper; or tell one in full",
    "doctor": "find out why a training does not work, before it or from its run",
    "selftest": "prove that large-batch training gives the plain gradient, on your model, data and loss",
    "bench-losses": "find out which loss helps on your data",
}
RESUMABLE = ("train", "train-reranker", "train-ltr", "encode", "rerank", "bench-losses")  # with --resume
GOING_ON = ("mine",)  # by themselves: what is finished lies in a store

OK, FAILED, USAGE = 0, 1, 2


class Terminated(BaseException):
    """SIGTERM arrived; clean-up handlers run as they do for Ctrl-C."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and name the nearest flag."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise InputError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status: 0 done, 1 failed, 2 bad usage or input, 128+n ended by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: _dispatch(arguments), arguments)


def exit_status(job: Callable[[], int], arguments: Sequence[str] = ()) -> int:
    """Run `job` and return its exit status; what it raises becomes one line on stderr and the status above."""
    try:
        status = job()
        sys.stdout.flush()  # here, and not when the interpreter ends, a reader that has gone is met quietly
        return status
    except SystemExit as stop:  # argparse's --help
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt:
        return _interrupted(arguments, signal.SIGINT)
    except Terminated:
        return _interrupted(arguments, signal.SIGTERM)
    except BrokenPipeError:  # the reader of stdout has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        return _failed(error, USAGE)
    except Exception as error:
        return _failed(error, FAILED)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(command_map())
        return OK
    if arguments[0] == "--version":
        print(f"rankwright {installed_version()}")
        return OK
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise InputError(f"unknown verb {verb!r}{did_you_mean(verb, VERBS)}")
    with _terminating():
        return _run_verb(verb, rest)


def _run_verb(verb: str, rest: list[str]) -> int:
    module = import_module(f"retrieval.cli.{verb.replace('-', '_')}")
    parser = Parser(
        prog=f"rankwright {verb}",
        description=module.__doc__,
        epilog=module.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    add_settings_flags(parser)
    parser.add_argument("--version", action="version", version=f"rankwright {installed_version()}")
    args = apply_settings(parser, rest)
    set_up_output(quiet=args.quiet)
    keep_freed_memory()
    status: int = module.run(args)
    return status


def command_map() -> str:
    """Return the text that `rankwright` alone prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            "Train retrievers, search an index, evaluate rankings.",
            "",
            "usage: rankwright VERB [flags]        rankwright VERB --help        rankwright --version",
            "",
            *lines,
        ]
    )


def installed_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("rankwright")
    except PackageNotFoundError:
        return "unknown (not installed)"


def set_up_output(*, quiet: bool) -> None:
    """Send the log lines of our packages to stderr as plain text; of other packages' only warnings show."""
    set_quiet(quiet)
    level = logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    for name in ("retrieval", "rankers", "indexes"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        return message if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {message}"


@contextmanager
def _terminating() -> Iterator[None]:
    """Turn SIGTERM into an exception, except where signals cannot be handled (in another thread) or are ignored."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) in (
        signal.SIG_IGN,
        None,
    ):
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _interrupted(arguments: Sequence[str], number: signal.Signals) -> int:
    verb, hint = arguments[0] if arguments else "", ""
    if verb in GOING_ON:
        hint = "; go on with the same command"
    elif verb in RESUMABLE and "--resume" not in arguments:
        how = "--resume instead of --overwrite" if "--overwrite" in arguments else "the same command and --resume"
        hint = f"; go on with {how}"
    print(f"\nstopped by {number.name}; every file written is whole{hint}", file=sys.stderr)
    return 128 + int(number)


def _failed(error: Exception, status: int) -> int:
    if os.environ.get("RANKWRIGHT_TRACEBACK"):
        import traceback

        traceback.print_exc()
    text = str(error).strip() or type(error).__name__
    expected = isinstance(error, (ValueError, OSError))
    line = " ".join(text.split()) if expected else f"{type(error).__name__}: {' '.join(text.split())}"
    hint = "" if status == USAGE else "  (RANKWRIGHT_TRACEBACK=1 shows where)"
    print(f"error: {line}{hint}", file=sys.stderr)
    return status
