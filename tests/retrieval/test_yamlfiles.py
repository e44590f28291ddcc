import gzip

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InputError
from retrieval.yamlfiles import dump_yaml, parse_yaml, read_yaml


@pytest.fixture
def written(tmp_path):
    def write(text, name="settings.yaml"):
        path = tmp_path / name
        data = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: {c: [x, 2.5]}\n", {"a": 1, "b": {"c": ["x", 2.5]}}),
        ("", {}),
        ("# nothing\n", {}),
        ("a: 1\r\nb: 2", {"a": 1, "b": 2}),
        (b"\xef\xbb\xbfa: 1\n", {"a": 1}),
        ("prompt: 'query: '\n", {"prompt": "query: "}),
        ("a: &x {t: 1}\nb: *x\n", {"a": {"t": 1}, "b": {"t": 1}}),
        ("1: a\n", {"1": "a"}),
        ("a: no\nb: on\nc: true\nd: FALSE\n", {"a": "no", "b": "on", "c": True, "d": False}),
        (
            "a: 12:30\nb: 2024-11-24\nc: 010\nd: 0\ne: -7\n",
            {"a": "12:30", "b": "2024-11-24", "c": "010", "d": 0, "e": -7},
        ),
        ("a:\nb: ~\nc: null\nd: ''\n", {"a": None, "b": None, "c": None, "d": ""}),
        ("base: &b {x: 1}\na: {<<: *b, y: 2}\n", {"base": {"x": 1}, "a": {"x": 1, "y": 2}}),
        (
            "a: 2e-5\nb: 1E3\nc: .5e+1\nd: 2e\ne: 1.5\nf: -2.e-1\n",
            {"a": 2e-5, "b": 1e3, "c": 5.0, "d": "2e", "e": 1.5, "f": -0.2},
        ),
        ("é: naïve 日本語\n", {"é": "naïve 日本語"}),
    ],
)
def test_a_mapping_is_read(written, text, expected):
    assert read_yaml(written(text)) == expected
    assert read_yaml(written(text, "settings.yaml.gz")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1\nc: 2\n", r"settings.yaml:\d: not YAML: "),
        ("a: 1\n\n\n b: 2\n", "settings.yaml:4: not YAML: "),
        ("a: 1\n\tb: 2\n", "settings.yaml:2: not YAML: found character"),
        ("a: b: c\n", "settings.yaml:1: not YAML: mapping values are not allowed here"),
        ("a: 1\nb: 2\na: 3\n", "settings.yaml:3: not YAML: 'a' stands there twice"),
        ("x:\n  a: 1\n  a: 2\n", "settings.yaml:3: not YAML: 'a' stands there twice"),
        ("a: \x00\n", "settings.yaml: not YAML: "),
        ("a: !!python/object/apply:os.system ['touch /tmp/never']\n", "settings.yaml:1: not YAML: could not determine"),
        ("a: 1\n---\nb: 2\n", "settings.yaml:2: not YAML: "),
        ("- a\n- b\n", "settings.yaml: got a YAML list; wanted a mapping of settings"),
        ("just words\n", "settings.yaml: got a YAML str; wanted a mapping"),
        (b"a: 1\nb: \xff\n", r"settings.yaml:2: byte 4 of the line is not UTF-8"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_line(written, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(written(text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml: no such file"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="is a folder; wanted a file"):
        read_yaml(tmp_path)


words = st.text(max_size=6) | st.sampled_from(
    ["no", "1e3", "010", "12:30", "~", "<<", "=", "0x1f", "\x85", "\u2028 a", "2024-1-1"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words


@given(st.dictionaries(words.filter(bool), scalars | st.lists(scalars, max_size=3), max_size=5))
def test_what_is_written_reads_back(values):
    text = dump_yaml(values)
    assert parse_yaml(text) == values
    assert [type(v) for v in parse_yaml(text).values()] == [type(v) for v in values.values()]


def test_other_readers_of_yaml_understand_it_too():
    values = {"a": "no", "b": "1e3", "c": "010", "d": 2e-5, "e": None, "f": True, "g": ["x"], "h": "12:30", "ü": "日本"}
    assert yaml.safe_load(dump_yaml(values)) == values
    assert "日本" in dump_yaml(values)
