import hashlib
import io
import json
import os
import random
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_folders import NEW, OLD, hidden, publish, published

from indexes import storage
from indexes.storage import StorageError


def test_writing_makes_parents_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "x" / "y" / "file.bin"
    with storage.writing(target) as file:
        file.write(b"one")
        file.write(b"two")
        assert not target.exists()
    assert target.read_bytes() == b"onetwo"
    assert os.listdir(target.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_writing_keeps_the_old_file_when_the_block_fails(tmp_path, error):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    files = []

    def fail():
        with storage.writing(target) as file:
            files.append(file)
            file.write(b"half of the new")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    files[0].close()  # what was buffered must not come back
    assert os.listdir(tmp_path) == ["file"]


def test_writing_twice_replaces_unless_asked_not_to(tmp_path):
    target = tmp_path / "file"
    storage.write_text(target, "1")
    storage.write_text(target, "2")
    assert target.read_text() == "2"
    with pytest.raises(StorageError, match=r"file: exists already.*--overwrite"):
        storage.write_text(target, "3", overwrite=False)
    assert target.read_text() == "2"


def test_writing_without_overwrite_sees_a_file_that_came_meanwhile(tmp_path):
    target = tmp_path / "file"
    with pytest.raises(StorageError, match="exists already"), storage.writing(target, overwrite=False):
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert hidden(tmp_path) == []


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back_byte_for_byte(tmp_path_factory, text):
    target = tmp_path_factory.mktemp("text") / "täxt 文.txt"
    storage.write_text(target, text)
    assert target.read_bytes() == text.encode()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))))
def test_lines_come_back(tmp_path_factory, lines):
    target = tmp_path_factory.mktemp("lines") / "lines"
    storage.write_lines(target, iter(lines))
    assert target.read_bytes().decode().split("\n") == [*lines, ""]


def test_lines_refuse_a_line_feed_and_keep_the_old_file(tmp_path):
    target = tmp_path / "lines"
    storage.write_lines(target, ["old"])
    with pytest.raises(ValueError, match=r"line 2 would hold a line feed: 'b\\nc'"):
        storage.write_lines(target, ["a", "b\nc"])
    assert target.read_text() == "old\n"


def test_json_is_utf8_and_has_no_nan(tmp_path):
    storage.write_json(tmp_path / "x.json", {"é": [1, 0.1]})
    assert (tmp_path / "x.json").read_text() == '{\n  "é": [\n    1,\n    0.1\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "x.json", float("nan"))
    assert (tmp_path / "x.json").read_text().startswith('{\n  "é"')


def test_text_wrappers_and_large_blocks_go_through(tmp_path):
    block = random.Random(0).randbytes(3_000_001)
    with storage.writing(tmp_path / "large") as file:
        file.write(block[:10])
        file.write(block[10:])
    assert storage.sha256_file(tmp_path / "large") == hashlib.sha256(block).hexdigest()
    with storage.writing(tmp_path / "text") as file:
        wrapped = io.TextIOWrapper(file, encoding="utf-8")
        wrapped.write("käse")
        wrapped.close()
    assert (tmp_path / "text").read_text() == "käse"


def test_the_file_yielded_cannot_seek(tmp_path):
    with pytest.raises(io.UnsupportedOperation), storage.writing(tmp_path / "x") as file:
        file.seek(0)


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_text(tmp_path / "file", "")
        with storage.publish_plain(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    storage.write_text(tmp_path / "link", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("target", ["/dev/full", "/dev/null", "folder", "fifo"])
def test_what_is_no_regular_file_is_refused(tmp_path, target):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorageError, match=r"is a (folder|pipe or a device); wanted the name of a regular file"):
        storage.write_text(tmp_path / target, "x")  # an absolute target wins over tmp_path


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file"):
        storage.write_text(tmp_path / "file" / "below", "x")


def test_a_published_folder_says_what_it_holds(tmp_path):
    folder = tmp_path / "deep" / "x"
    manifest = {"kind": "test", "pair": (1, 2)}
    with storage.publishing(folder, manifest) as directory:
        (directory / "a.txt").write_text("abc")
        (directory / "sub").mkdir()
        (directory / "sub" / "é.txt").write_text("")
        manifest["rows"] = 3  # known only now
    artifact = storage.open_folder(folder, kind="test")
    assert artifact.path == folder / "v000001"
    assert artifact.manifest["rows"] == 3
    assert artifact.manifest["pair"] == [1, 2]
    assert artifact.manifest["format"] == 1
    assert artifact.manifest["created_by"].startswith("rankwright ")
    assert artifact.manifest["files"] == {
        "a.txt": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
        "sub/é.txt": {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()},
    }
    assert sorted(os.listdir(folder)) == ["CURRENT", "v000001"]


def test_the_checksum_is_the_one_the_docstring_describes(tmp_path):
    publish(tmp_path / "x", NEW)
    manifest = json.loads((tmp_path / "x" / "v000001" / "manifest.json").read_text())
    claimed = manifest.pop("checksum")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert claimed == hashlib.sha256(canonical).hexdigest()
    assert (tmp_path / "x" / "CURRENT").read_text() == f"v000001 {claimed}\n"


def test_replacing_needs_overwrite_and_removes_older_versions(tmp_path):
    folder = tmp_path / "x"
    publish(folder, OLD)
    with pytest.raises(StorageError, match=r"x: exists already.*--overwrite"):
        publish(folder, NEW, overwrite=False)
    assert published(folder) == OLD
    publish(folder, NEW)
    assert published(folder) == NEW
    assert sorted(os.listdir(folder)) == ["CURRENT", "v000002"]


def test_a_failing_block_leaves_no_trace(tmp_path):
    with pytest.raises(FileNotFoundError), storage.publishing(tmp_path / "new", {"kind": "test"}) as directory:
        (directory / "missing").read_text()
    assert os.listdir(tmp_path) == []
    publish(tmp_path / "old", OLD)
    with (
        pytest.raises(KeyboardInterrupt),
        storage.publishing(tmp_path / "old", {"kind": "test"}, overwrite=True) as directory,
    ):
        raise KeyboardInterrupt
    assert published(tmp_path / "old") == OLD
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"holds other things \(thesis.tex\)"):
        publish(tmp_path, NEW, overwrite=overwrite)
    with pytest.raises(StorageError, match="is a file; wanted a folder"):
        publish(tmp_path / "thesis.tex", NEW, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_an_empty_folder_may_be_published_into(tmp_path):
    publish(tmp_path, NEW, overwrite=False)
    assert published(tmp_path) == NEW


def test_a_damaged_folder_can_be_published_again(tmp_path):
    for damage in (b"", b"v000001\n", b"v000009 " + b"0" * 64 + b"\n"):
        publish(tmp_path / "x", OLD)
        (tmp_path / "x" / "CURRENT").write_bytes(damage)
        with pytest.raises(StorageError):
            published(tmp_path / "x")
        publish(tmp_path / "x", NEW)
        assert published(tmp_path / "x") == NEW


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({}, "kind must be a string, got None"),
        ({"kind": 3}, "kind must be a string, got 3"),
        ({"kind": "x", "files": {}}, "may not set files"),
        ({"kind": "x", "format": 9, "checksum": ""}, "may not set checksum, format"),
        ({"kind": "x", "value": float("inf")}, "not JSON compliant"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, manifest, message):
    with pytest.raises(ValueError, match=message), storage.publishing(tmp_path / "x", manifest):
        pass
    assert os.listdir(tmp_path) == []


def test_links_pipes_and_our_own_name_are_not_published(tmp_path):
    for name, make in {
        "link": lambda path: path.symlink_to("/etc/hostname"),
        "pipe": os.mkfifo,
        "manifest.json": lambda path: path.write_text("{}"),
    }.items():
        with pytest.raises(ValueError, match=name), storage.publishing(tmp_path / "x", {"kind": "t"}) as directory:
            make(directory / name)
        assert os.listdir(tmp_path) == []


def test_plain_folders_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "checkpoints" / "step-5"
    with storage.publish_plain(target) as directory:
        (directory / "deep" / "er").mkdir(parents=True)
        (directory / "deep" / "er" / "weights").write_bytes(b"123")
        assert not target.exists()
    assert storage.hash_folder(target) == {"deep/er/weights": {"size": 3, "sha256": hashlib.sha256(b"123").hexdigest()}}
    with pytest.raises(StorageError, match="step-5: exists already"), storage.publish_plain(target):
        pass
    with pytest.raises(RuntimeError), storage.publish_plain(tmp_path / "checkpoints" / "step-6"):
        raise RuntimeError
    assert os.listdir(target.parent) == ["step-5"]
    storage.remove_folder(target)
    assert os.listdir(target.parent) == []


def test_check_target_finds_out_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    storage.check_target(tmp_path / "a" / "b" / "c")
    storage.check_target(tmp_path / "file", overwrite=True)
    with pytest.raises(StorageError, match="exists already"):
        storage.check_target(tmp_path / "file")
    with pytest.raises(StorageError, match=r"because .*file is a file"):
        storage.check_target(tmp_path / "file" / "below")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StorageError, match="exists already"):
        storage.check_target(tmp_path / "dangling")


def test_check_target_finds_a_folder_without_permission(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.geteuid() == 0:  # who may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o222))
    with pytest.raises(StorageError, match="not writable for this user"):
        storage.check_target(tmp_path / "closed" / "x")
