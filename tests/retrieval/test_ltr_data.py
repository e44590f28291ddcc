"""The lists of a run: what is carved, what is refused, what is left out and told."""

import hashlib
import logging
from dataclasses import replace

import numpy as np
import pytest
from feature_files import lists, written

from retrieval.errors import InputError
from retrieval.ltr_config import LtrConfig
from retrieval.ltr_data import carve_lists, load_ltr_data


@pytest.fixture
def load(tmp_path):
    """Write lists and read them as a run would."""

    def read(train, valid=None, test=None, **settings):
        files = {"features": train, "valid": valid, "test": test}
        paths = {n: written(tmp_path / f"{n}.txt", found) for n, found in files.items() if found is not None}
        return load_ltr_data(LtrConfig(out="run", **paths, **settings))

    return read


def share(query_id: str) -> float:
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) / 2**256


def test_a_fifth_is_carved_by_the_hash_of_the_ids(load, caplog):
    with caplog.at_level(logging.INFO, logger="retrieval"):
        data = load(lists(50))
    assert (
        "carved for it, by their ids alone; where queries are near-equal, `rankwright features --dev-out`"
        in caplog.text
    )
    assert data.dev.query_ids == [query_id for query_id in lists(50).query_ids if share(query_id) < 0.2]
    assert data.train.query_ids == [query_id for query_id in lists(50).query_ids if share(query_id) >= 0.2]
    whole = lists(50)
    first = whole.query_ids.index(data.dev.query_ids[0])
    np.testing.assert_array_equal(data.dev.split_features()[0], whole.split_features()[first])


def test_with_a_file_or_without_validation_nothing_is_carved(load):
    data = load(lists(5), lists(3, prefix="v"))
    assert (len(data.train), len(data.dev)) == (5, 3)
    data = load(lists(5), eval_strategy="no")
    assert (len(data.train), data.dev) == (5, None)


@pytest.mark.parametrize("name", ["valid", "test"])
def test_a_query_in_two_files_is_refused(load, tmp_path, name):
    other = lists(2, prefix="v")
    other = replace(other, query_ids=["v0", "q3"])
    with pytest.raises(InputError) as caught:
        load(lists(5), **{name: other})
    message = f"{tmp_path}/{name}.txt: query 'q3' is in {tmp_path}/features.txt too; a query belongs to one split"
    assert str(caught.value).startswith(message)
    assert len(load(lists(5), **{name: other}, ids_restart=True).train) in (4, 5)


def test_the_same_file_twice_is_refused(tmp_path):
    path = written(tmp_path / "train.txt", lists(5))
    with pytest.raises(InputError, match="query 'q0' is in"):
        load_ltr_data(LtrConfig(out="run", features=path, valid=path))


def test_a_copy_of_a_file_is_refused_where_ids_begin_anew(load, tmp_path):
    with pytest.raises(InputError) as caught:
        load(lists(5), lists(3, seed=1), lists(5), ids_restart=True)
    expected = f"{tmp_path}/test.txt: holds what {tmp_path}/features.txt holds; what is trained on must not be measured"
    assert str(caught.value) == expected
    assert len(load(lists(5), lists(3, seed=1), lists(5, seed=2), ids_restart=True).train) == 5


@pytest.mark.parametrize("name", ["valid", "test"])
def test_a_feature_of_two_names_is_refused(load, tmp_path, name):
    other = replace(lists(3, prefix="v"), names=["signal", "noise", "length"])
    with pytest.raises(InputError) as caught:
        load(lists(5), **{name: other})
    message = f"{tmp_path}/{name}.txt: feature 4 is 'length' here and 'constant' in {tmp_path}/features.txt"
    assert str(caught.value) == f"{message}; a number must mean one feature"
    for names in (["signal", "", ""], None):
        load(lists(5), **{name: replace(other, names=names)})
        load(replace(lists(5), names=names), **{name: other})


def test_features_that_training_lacks_are_left_out_and_told(load, caplog, tmp_path):
    train, other = lists(5), lists(3, prefix="v")
    other = replace(other, numbers=np.array([1, 3, 9]), names=None)
    with caplog.at_level(logging.INFO, logger="retrieval"):
        data = load(train, other)
    assert data.dev.numbers.tolist() == [1, 2, 4]
    assert np.isnan(data.dev.features[:, 1:]).all()
    np.testing.assert_array_equal(data.dev.features[:, 0], other.features[:, 0])
    assert f"{tmp_path}/valid.txt: features that training does not know are ignored: 2, such as 3" in caplog.text
    assert f"{tmp_path}/valid.txt: features that are missing everywhere: 2, such as 2" in caplog.text


def test_what_teaches_nothing_is_counted(load, caplog):
    train = lists(4)
    labels = train.labels.copy()
    labels[:6] = 1
    labels[6:] = [0, 2, 0] * 6
    alone = replace(train, labels=labels, sizes=np.array([6, 6, 11, 1]))
    with caplog.at_level(logging.INFO, logger="retrieval"):
        load(alone, eval_strategy="no")
    assert "training: 4 queries, 24 documents, 3 features, of which 1 are constant" in caplog.text
    assert "learns nothing: 1 of one document, 1 of one grade" in caplog.text


def test_a_feature_that_only_carved_queries_have_is_no_column(load):
    train = lists(50)
    is_dev = np.repeat([share(query_id) < 0.2 for query_id in train.query_ids], 6)
    features = train.features.copy()
    features[~is_dev, 1] = np.nan
    assert load(replace(train, features=features)).train.numbers.tolist() == [1, 4]


def test_dev_without_a_relevant_document_validates_nothing(load, caplog):
    other = lists(2, prefix="v")
    assert load(lists(5), replace(other, labels=np.zeros_like(other.labels))).dev is None
    assert "no dev document has a grade > 0: nothing is validated" in caplog.text
    load(lists(5), lists(2, prefix="v"), replace(lists(2, prefix="t"), labels=np.zeros(len(other.labels))))
    assert "no test document has a grade > 0: its measures are 0 and say nothing" in caplog.text


def test_files_from_which_nothing_can_be_learned_are_refused(load):
    train = lists(5)
    with pytest.raises(InputError, match="no training document has a grade > 0"):
        load(replace(train, labels=np.zeros_like(train.labels)), lists(2, prefix="v"))
    with pytest.raises(InputError, match="no training document has a feature"):
        load(replace(train, features=np.full_like(train.features, np.nan), names=None), eval_strategy="no")
    with pytest.raises(InputError, match="cannot be divided into training and dev; give --valid, or turn validation"):
        load(train.select([0]))
    with pytest.raises(InputError, match=r"has a grade of 501; nDCG\(dcg='exp-log2'\) takes grades up to 500"):
        load(replace(train, labels=np.full_like(train.labels, 501)))


def test_the_fingerprint_follows_every_file(load):
    train, other, third = lists(5), lists(2, prefix="v"), lists(2, prefix="t")
    found = {
        load(train, other, third).fingerprint,
        load(train, other).fingerprint,
        load(train, other, lists(2, seed=1, prefix="t")).fingerprint,
        load(lists(5, seed=1), other, third).fingerprint,
    }
    assert len(found) == 4
    assert load(train, other, third).fingerprint in found


def test_carving_parts_the_queries():
    train, dev = carve_lists(lists(30))
    assert sorted([*train.query_ids, *dev.query_ids]) == sorted(lists(30).query_ids)
