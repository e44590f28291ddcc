"""Folders to publish and processes to start, for the tests of storage."""

import subprocess
import sys
import textwrap
from pathlib import Path

from indexes import storage

ROOT = Path(__file__).resolve().parents[2]


def published(folder):
    """Return {name: text} of the current version, everything checked; None when there is none."""
    if not (folder / "CURRENT").exists():
        return None
    artifact = storage.open_folder(folder, kind="test")
    return {name: (artifact.path / name).read_text() for name in artifact.manifest["files"]}


def publish(folder, files, *, overwrite=True, **manifest):
    with storage.publishing(folder, {"kind": "test", **manifest}, overwrite=overwrite) as directory:
        for name, text in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


OLD, NEW = {"a.txt": "old a", "sub/b.txt": "old b"}, {"a.txt": "new a", "sub/b.txt": "new b", "c.txt": "c" * 5000}


def run(code, *args, **options):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def start(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
