import gzip

import pytest
from beir_folder import write
from hypothesis import given
from hypothesis import strategies as st

from retrieval import textfiles
from retrieval.errors import InputError
from retrieval.textfiles import has_lone_surrogate, numbered_bytes, numbered_lines, open_bytes, parse_json, parse_object

TEXTS = ["a", "é", "漢字", "🜁 🜂", "x\u2028y"]  # U+2028 ends a line for str.splitlines, but not in a file


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_marks_line_ends_and_blank_lines_do_not_matter(tmp_path, ending, newline, mark, last):
    lines = [TEXTS[0], "", *TEXTS[1:3], "   ", *TEXTS[3:]]
    text = mark + newline.join(lines) + (newline if last else "")
    path = write(tmp_path / f"f.jsonl{ending}", text)
    assert list(numbered_lines(path)) == [(1, "a"), (3, "é"), (4, "漢字"), (6, "🜁 🜂"), (7, "x\u2028y")]


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), max_size=20)))
def test_every_line_lies_at_its_offset(tmp_path_factory, lines):
    path = write(tmp_path_factory.mktemp("offsets") / "f", "\n".join(lines))
    content = path.read_bytes()
    for number, offset, raw in numbered_bytes(path):
        assert content[offset : offset + len(raw)] == raw
        assert raw.decode().rstrip("\n") == lines[number - 1].removeprefix("\ufeff" if number == 1 else "")


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"a\n\xff\n", ":2: byte 1 "),
        (b"a\nxyz\xe2\x82\n", ":2: byte 4 "),  # cut off
        (b"\xed\xa0\x80\n", ":1: byte 1 "),  # a surrogate, encoded
        (b"\xc0\x80\n", ":1: byte 1 "),  # an overlong NUL
    ],
)
def test_invalid_utf8_is_told_by_file_line_and_byte(tmp_path, content, where):
    path = write(tmp_path / "f.txt", content)
    with pytest.raises(InputError, match="not UTF-8") as caught:
        list(numbered_lines(path))
    assert str(caught.value).startswith(f"{path}{where}")


def test_a_reader_that_collects_goes_on_after_invalid_utf8(tmp_path):
    path = write(tmp_path / "f.txt", b"a\n\xff\nb\n\xfe\n")
    defects = []
    assert list(numbered_lines(path, defects.append)) == [(1, "a"), (3, "b")]
    assert [(defect.line, defect.kind) for defect in defects] == [(2, "not UTF-8"), (4, "not UTF-8")]


def test_gzip_data_that_is_cut_anywhere_is_an_error_and_never_a_short_text(tmp_path):
    whole = gzip.compress(b"".join(b"line %d\n" % n for n in range(2000)), mtime=0)
    path = tmp_path / "f.gz"
    for size in [*range(12), *range(12, len(whole), max(1, len(whole) // 120)), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="gzip"):
            list(numbered_bytes(path))


def test_gzip_data_with_any_bad_bit_is_an_error_or_reads_the_same(tmp_path):
    text = b"".join(b"line %d\n" % n for n in range(300))
    whole = bytearray(gzip.compress(text, mtime=0))
    path = tmp_path / "f.gz"
    for place in range(10, len(whole)):  # the header before it holds a time and flags that change nothing
        damaged = whole.copy()
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="gzip"):
            list(numbered_bytes(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("nowhere"), "leads nowhere"),
        (lambda path: __import__("os").mkfifo(path), "not a regular file"),
    ],
    ids=["missing", "folder", "dangling link", "pipe"],
)
def test_what_is_no_file_is_told(tmp_path, make, message):
    path = tmp_path / "f.jsonl"
    make(path)
    with pytest.raises(InputError, match=message):
        open_bytes(path)


def test_plain_text_called_gz_is_told(tmp_path):
    path = tmp_path / "f.gz"
    path.write_text("plain")
    with pytest.raises(InputError, match="gzip data is damaged"):
        list(numbered_bytes(path))


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_LINE_BYTES", 1000)
    path = write(tmp_path / "f.json", "short\n" + "x" * 5000)
    with pytest.raises(InputError, match="longer than") as caught:
        list(numbered_bytes(path))
    assert caught.value.line == 2
    assert len(list(numbered_bytes(write(tmp_path / "g", "x" * 1000)))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "column 8 is not JSON"),
        ("{'a': 1}", "column 2 is not JSON"),
        ('{"a": 1} x', "column 10 is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 5000, "is not JSON"),
        ("[1]", "got a JSON list"),
        ('"a"', "got a JSON str"),
        (r'{"a": "x\ud800"}', "column 9 holds half a surrogate pair"),
        (r'{"\uDFFF": 1}', "column 3 holds half a surrogate pair"),
        (r'{"a": "\udc00\ud800"}', "column 8 holds half"),
    ],
)
def test_what_is_no_json_object_is_told_with_the_column(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_object(text, tmp_path / "f", 7)
    assert str(caught.value).startswith(f"{tmp_path / 'f'}:7: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"\ud83d\ude00"', "😀"),
        (r'"\\ud800"', r"\ud800"),
        (r'"\\ud800 \ud83d\ude00"', r"\ud800 😀"),
        ('"\\u00e9"', "é"),
        ("\ufeff1".removeprefix("\ufeff"), 1),
    ],
)
def test_whole_pairs_and_escaped_backslashes_are_no_surrogates(tmp_path, text, value):
    assert parse_json(text, tmp_path, 1) == value


def test_lone_surrogates_are_seen():
    assert has_lone_surrogate("a\udc80")
    assert not has_lone_surrogate("a😀é")
