"""TF-IDF cosines: by hand, and against scikit-learn."""

import math
from importlib.util import find_spec

import numpy as np
import pytest

from retrieval.text_likeness import TextLikeness


def test_two_texts_by_hand():
    texts = ["Cats sleep.", "cats bark, bark", "fish"]
    common, own = 1 + math.log(4 / 3), 1 + math.log(4 / 2)  # cats in two of three texts, the others in one
    bark = (1 + math.log(2)) * own
    expected = common**2 / math.hypot(common, own) / math.hypot(common, bark)
    found = TextLikeness(texts).cosines([0], [0, 1, 2])
    assert found == pytest.approx(np.array([[1.0, expected, 0.0]]))


def test_a_text_without_words_is_like_nothing():
    likeness = TextLikeness(["", "cats", "…", "cats"])
    assert likeness.cosines([0, 1, 2, 3], [0, 1, 2, 3]) == pytest.approx(
        np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]])
    )
    assert likeness.cosines([], [1]).shape == (0, 1)
    assert TextLikeness([]).cosines([], []).shape == (0, 0)


def test_scikit_learn_agrees():
    if find_spec("sklearn") is None:
        pytest.skip("needs the demo extra")
    from sklearn.feature_extraction.text import TfidfVectorizer

    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.zipf(1.5, size=size) if word < 1_000) for size in range(1, 40)]
    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit_transform(texts)
    found = TextLikeness(iter(texts)).cosines(range(20), range(10, 39))
    np.testing.assert_allclose(found, (vectors[:20] @ vectors[10:39].T).toarray(), atol=1e-12)
