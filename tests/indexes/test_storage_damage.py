import hashlib
import json
import os
import random
import re
from pathlib import Path

import pytest
from published_folders import publish, published

from indexes import storage
from indexes.storage import StorageError

FILES = {"a.txt": "alpha " * 50, "b.txt": "bravo " * 50, "sub/c.bin": "\x00\x01" * 100, "empty": ""}


@pytest.fixture
def folder(memory_path):
    publish(memory_path / "x", FILES)
    return memory_path / "x"


def refusal(folder, **options):
    with pytest.raises(StorageError) as caught:
        storage.open_folder(folder, kind="test", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def swap(version):
    (version / "a.txt").rename(version / "t")
    (version / "b.txt").rename(version / "a.txt")
    (version / "t").rename(version / "b.txt")


def replace_by(make):
    def damage(version):
        (version / "a.txt").unlink()
        make(version / "a.txt")

    return damage


SHA_OF_ALPHA = hashlib.sha256(FILES["a.txt"].encode()).hexdigest()
SHA_OF_BRAVO = hashlib.sha256(FILES["b.txt"].encode()).hexdigest()
DAMAGES = {
    "missing": (lambda v: (v / "a.txt").unlink(), "a.txt: is missing; expected a file of 300 bytes"),
    "extra": (lambda v: (v / "d").write_text("d"), "d: is not in the manifest"),
    "extra hidden": (lambda v: (v / ".d").write_text("d"), "d: is not in the manifest"),
    "extra below": (lambda v: (v / "sub" / "d").write_text("d"), "sub/d: is not in the manifest"),
    "cut off": (lambda v: os.truncate(v / "a.txt", 299), "a.txt: size 299, expected 300: it is cut off"),
    "zero bytes": (lambda v: os.truncate(v / "a.txt", 0), "a.txt: size 0, expected 300"),
    "appended": (lambda v: (v / "a.txt").write_text(FILES["a.txt"] + "!"), "a.txt: size 301, expected 300"),
    "grown from nothing": (lambda v: (v / "empty").write_text("!"), "empty: size 1, expected 0"),
    "altered": (
        lambda v: (v / "a.txt").write_text(FILES["a.txt"].replace("alpha", "alphA", 1)),
        f"a.txt: sha256 [0-9a-f]{{64}}, expected {SHA_OF_ALPHA}: it was altered",
    ),
    "swapped": (swap, f"a.txt: sha256 {SHA_OF_BRAVO}, expected {SHA_OF_ALPHA}"),
    "folder for a file": (replace_by(Path.mkdir), "a.txt: is a folder; expected a file of 300 bytes"),
    "dangling link": (replace_by(lambda p: p.symlink_to("nowhere")), "a.txt: is a symbolic link"),
    "link to the right bytes": (replace_by(lambda p: p.symlink_to("b.txt")), "a.txt: is a symbolic link"),
    "pipe": (replace_by(os.mkfifo), "a.txt: is a pipe"),
    "manifest missing": (lambda v: (v / "manifest.json").unlink(), "manifest.json: is missing"),
    "manifest empty": (lambda v: os.truncate(v / "manifest.json", 0), "manifest.json: is damaged"),
    "manifest of other bytes": (
        lambda v: (v / "manifest.json").write_text((v / "manifest.json").read_text() + "\n"),
        "manifest.json: is altered: same values, other bytes",
    ),
    "manifest no object": (lambda v: (v / "manifest.json").write_text("[1]"), "manifest.json: is damaged"),
    "manifest nested deeply": (
        lambda v: (v / "manifest.json").write_text("[" * 100_000),
        "manifest.json: is damaged",
    ),
    "manifest huge": (
        lambda v: os.truncate(v / "manifest.json", 1 << 40),
        "has 1099511627776 bytes, expected at most 67108864",
    ),
    "manifest a pipe": (
        lambda v: ((v / "manifest.json").unlink(), os.mkfifo(v / "manifest.json")),
        "manifest.json: is no regular file",
    ),
    "version missing": (lambda v: v.rename(v.parent / "v000007"), "v000001: is no folder, but CURRENT"),
    "version a link": (
        lambda v: (v.rename(v.parent / "real"), v.symlink_to("real")),
        "v000001: is no folder, but CURRENT",
    ),
    "CURRENT missing": (lambda v: (v.parent / "CURRENT").unlink(), "CURRENT: is missing"),
    "CURRENT empty": (
        lambda v: os.truncate(v.parent / "CURRENT", 0),
        "CURRENT: expected 'vNNNNNN <64 hex digits>', got b''",
    ),
    "CURRENT with a blank more": (
        lambda v: (v.parent / "CURRENT").write_text((v.parent / "CURRENT").read_text() + "\n"),
        "CURRENT: expected",
    ),
    "CURRENT of another version": (
        lambda v: (v.parent / "CURRENT").write_text("v000001 " + "0" * 64 + "\n"),
        "CURRENT: says b'v000001 0{64}.*expected b'v000001",
    ),
    "CURRENT leads out": (
        lambda v: (v.parent / "CURRENT").write_text("../../etc " + "0" * 64 + "\n"),
        "CURRENT: expected",
    ),
    "no folder": (lambda v: v.parent.rename(v.parent.with_name("y")), "x: no such folder"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_both_values(folder, name):
    damage, message = DAMAGES[name]
    damage(folder / "v000001")
    assert re.search(message, refusal(folder)), refusal(folder)


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in ("altered", "swapped")])
def test_verify_size_finds_what_needs_no_hashing(folder, name):
    damage, message = DAMAGES[name]
    damage(folder / "v000001")
    assert re.search(message, refusal(folder, verify="size"))


def test_verify_size_reads_no_contents(folder):
    DAMAGES["altered"][0](folder / "v000001")
    assert storage.open_folder(folder, kind="test", verify="size").manifest["kind"] == "test"
    with pytest.raises(ValueError, match="verify must be 'full' or 'size', got 'none'"):
        storage.open_folder(folder, kind="test", verify="none")


def test_another_kind_is_refused(folder):
    with pytest.raises(StorageError, match="x: is of kind 'test', wanted 'index'"):
        storage.open_folder(folder, kind="index")


def test_every_single_bit_flip_is_found(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert {"CURRENT", "manifest.json", "a.txt", "c.bin"} <= {path.name for path in paths}
    choose = random.Random(0)
    for path in paths:
        clean = path.read_bytes()
        for _ in range(150):
            bit = choose.randrange(8 * len(clean))
            damaged = bytearray(clean)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            refusal(folder)
        path.write_bytes(clean)
    assert published(folder) == FILES


def test_every_truncation_and_a_zeroed_page_is_found(folder):
    for path in [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]:
        clean = path.read_bytes()
        for percent in range(0, 100, 2):
            path.write_bytes(clean[: len(clean) * percent // 100])
            refusal(folder)
        path.write_bytes(b"\x00" * len(clean))
        refusal(folder)
        path.write_bytes(clean)
    assert published(folder) == FILES


def reseal(folder, change):
    """Forge: alter the manifest and make checksum and CURRENT agree with it."""
    path = folder / "v000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    del manifest["checksum"]
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    manifest["checksum"] = hashlib.sha256(canonical).hexdigest()
    path.write_text(json.dumps(manifest, sort_keys=True, indent=1) + "\n")
    (folder / "CURRENT").write_text(f"v000001 {manifest['checksum']}\n")


def test_resealing_without_a_change_is_accepted(folder):
    reseal(folder, lambda manifest: None)
    assert published(folder) == FILES


def test_a_newer_format_is_refused_by_number(folder):
    reseal(folder, lambda manifest: manifest.update(format=3))
    assert "manifest.json: format 3 > 1 supported; update rankwright" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/hostname", "sub/../../../secret", "..", ".", "", "sub//c.bin", "./a.txt", "a\\b"]
)
def test_names_that_lead_out_are_refused(folder, name):
    (folder.parent / "secret").write_text("secret")
    entry = {"size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    reseal(folder, lambda manifest: manifest["files"].update({name: entry}))
    assert f"file name {name!r} is no plain name inside the folder" in refusal(folder)


@pytest.mark.parametrize("files", [None, [], {"a.txt": 3}, {"a.txt": {"size": 300}}, {"a.txt": None}])
def test_a_forged_list_of_files_is_refused(folder, files):
    reseal(folder, lambda manifest: manifest.update(files=files))
    assert "manifest.json: " in refusal(folder)


GOLDEN = b"cc0ff8647f19908b556afbfd861cd2e38d1661b17bcdd5fbf833c10c7e5d4e46"


def test_format_1_stays_readable(tmp_path):
    """A folder as the first release wrote it, byte for byte: this test may never be adapted to the code."""
    version = tmp_path / "v000001"
    version.mkdir()
    (version / "a.txt").write_bytes(b"abc")
    (version / "manifest.json").write_bytes(
        b'{\n "checksum": "CHECKSUM",\n "created_by": "rankwright 0.1.0",\n "files": {\n  "a.txt": {\n   "sha256": '
        b'"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",\n   "size": 3\n  }\n },\n "format": 1,\n'
        b' "kind": "golden",\n "model": "caf\\u00e9"\n}\n'.replace(b"CHECKSUM", GOLDEN)
    )
    (tmp_path / "CURRENT").write_bytes(b"v000001 " + GOLDEN + b"\n")
    assert storage.open_folder(tmp_path, kind="golden").manifest["model"] == "café"
