import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import ids as ids_module
from retrieval.ids import IdTable

IDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(st.lists(IDS, unique=True, max_size=60))
def test_a_table_is_the_list_it_was_made_from(ids):
    table = IdTable.build(ids)
    assert list(table) == ids == table[:] == [table[row] for row in range(len(table))]
    assert [table.find(text) for text in ids] == list(range(len(ids)))
    assert table.duplicates() == []


@given(st.lists(st.sampled_from(["a", "b", "c", "\u00e9", "e\u0301", "🜁", ""]), max_size=30))
def test_duplicates_name_the_first_and_each_later_row(ids):
    expected = [(ids.index(text), row) for row, text in enumerate(ids) if ids.index(text) < row]
    table = IdTable.build(ids)
    assert table.duplicates() == expected
    assert all(table.find(text) == ids.index(text) for text in ids)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
def test_duplicates_are_found_across_the_borders_of_blocks(monkeypatch, block):
    monkeypatch.setattr(ids_module, "_BLOCK", block)
    ids = [f"d{n % 11}" for n in range(30)]
    assert IdTable.build(ids).duplicates() == [(n % 11, n) for n in range(11, 30)]


def test_equal_hashes_do_not_confuse_the_look_up():
    # Two different strings with the same crc32, found by searching; the names below prove that they collide.
    first, second = colliding_pair()
    assert zlib.crc32(first.encode()) == zlib.crc32(second.encode())
    table = IdTable.build(["x", first, "y", second])
    assert (table.find(first), table.find(second)) == (1, 3)
    assert table.duplicates() == []
    only_first = IdTable.build([first])
    assert second not in only_first
    assert first in only_first


def colliding_pair():
    seen = {}
    for n in range(400_000):
        text = f"doc-{n * 2654435761 % 2**40:x}"
        other = seen.setdefault(zlib.crc32(text.encode()), text)
        if other != text:
            return other, text
    raise AssertionError("no collision among 400,000 strings, where 18 are expected")


def test_composed_and_decomposed_letters_are_different_ids():
    table = IdTable.build(["\u00e9", "e\u0301"])
    assert (table.find("\u00e9"), table.find("e\u0301")) == (0, 1)


def test_what_is_not_there_is_not_found():
    table = IdTable.build(["a", "b"])
    assert table.find("c") is None
    assert "c" not in table
    assert 7 not in table
    assert "\ud800" not in table
    assert IdTable.build([]).find("a") is None
    assert list(IdTable.build([])) == []


def test_rows_outside_raise_index_error_and_negative_ones_count_from_the_end():
    table = IdTable.build(["a", "b"])
    assert table[-1] == "b"
    assert table[np.int64(1)] == "b"
    with pytest.raises(IndexError):
        table[2]


def test_a_table_costs_twelve_bytes_and_the_text_for_each_id():
    table = IdTable.build(f"{n:08d}" for n in range(1000))
    assert len(table.blob) == 8000
    assert table.ends.nbytes + table._keys.nbytes == 12 * 1000
