import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.docstrings import parse_docstring, plain, sentences, words
from retrieval.errors import InputError

NUMPYDOC = """
hypot(x1, x2, /, out=None, *, where=True)

Given the "legs" of a right triangle,
return its hypotenuse. Equivalent to ``sqrt(x1**2 + x2**2)``, element-wise.

.. versionadded:: 1.2
    With `where`.

Parameters
----------
x1, x2 : array_like
    Leg of the triangle(s).
out : ndarray, None, or tuple of ndarray and None, optional
    A location into which the result is stored.

    If not provided, a new array is returned.

Returns
-------
z : ndarray
    The hypotenuse [1]_ of the triangle(s).

See Also
--------
sqrt : Square root. Also `cbrt`.
numpy.linalg.norm, ndarray.sort : Others.
:func:`~scipy.special.cbrt`
absolute
    Indented description, not `a_name`.
For more see the guide.

Notes
-----
It is **fast**.

References
----------
.. [1] Pythagoras, "On triangles".

Examples
--------
>>> np.hypot(3, 4)
5.0
"""

GOOGLE = r"""
abs(input: Tensor, *, out: Optional[Tensor]) -> Tensor

Computes the absolute value of each element in :attr:`input`.

.. math::
    \text{out}_{i} = |\text{input}_{i}|

.. note:: Complex numbers give their :meth:`modulus <torch.Tensor.abs>`.

Args:
    input (Tensor): the input tensor.

.. seealso::

        :func:`torch.sign` and :class:`~torch.nn.ReLU`; :attr:`input` is no object.

Example::

    >>> torch.abs(torch.tensor([-1, -2, 3]))
    tensor([ 1,  2,  3])
"""


def body(doc):
    return [" ".join(paragraph) for paragraph in parse_docstring(doc).body]


def test_numpydoc_sections():
    parsed = parse_docstring(NUMPYDOC)
    assert parsed.summary == 'Given the "legs" of a right triangle, return its hypotenuse'
    assert parsed.see_also == ("sqrt", "numpy.linalg.norm", "ndarray.sort", "scipy.special.cbrt", "absolute")
    assert body(NUMPYDOC) == [
        "Equivalent to sqrt(x1**2 + x2**2), element-wise.",
        "x1, x2 : array_like Leg of the triangle(s).",
        "out : ndarray, None, or tuple of ndarray and None, optional A location into which the result is stored.",
        "If not provided, a new array is returned.",
        "z : ndarray The hypotenuse of the triangle(s).",
        "It is fast.",
    ]


def test_google_style():
    parsed = parse_docstring(GOOGLE)
    assert parsed.summary == "Computes the absolute value of each element in input"
    assert parsed.see_also == ("torch.sign", "torch.nn.ReLU")
    assert body(GOOGLE) == [
        r"\text{out}_{i} = |\text{input}_{i}|",
        "Note: Complex numbers give their modulus.",
        "Args: input (Tensor): the input tensor.",
    ]


@pytest.mark.parametrize(
    "signature",
    [
        "exp(x)",
        "exp(x) -> y",
        "torch.exp(input: Tensor, *, out=None) -> Tensor  ",
        "class exp(x, y=(1, 2)):",
        "exp(x,\n    y=None,\n    casting='same_kind')",
        "exp(x, /[, out1])\n\nexp(x, out=None)",
        "exp(x)\nexp(x, y)",
    ],
)
def test_signatures_are_not_the_summary(signature):
    assert parse_docstring(f"{signature}\n\nExponential of all elements.").summary == "Exponential of all elements"
    assert parse_docstring(f"{signature}\nExponential of all elements.").summary == "Exponential of all elements"


@pytest.mark.parametrize("doc", ["f(x) is the exponential of all.", "exp(x", "exp (unfinished, of x"])
def test_prose_that_looks_like_a_call_stays(doc):
    assert parse_docstring(doc).summary == doc.rstrip(".")


@pytest.mark.parametrize("doc", ["", "   \n ", "exp(x) -> y", ">>> exp(1)\n2.7", ".. math:: x^2"])
def test_docstrings_without_a_summary(doc):
    parsed = parse_docstring(doc)
    assert parsed.summary == ""
    assert parsed.see_also == ()


def test_a_note_before_the_summary_goes_to_the_body():
    parsed = parse_docstring(".. warning:: Unstable interface.\n\nFinds the root.\n\nSlowly.")
    assert parsed.summary == "Finds the root"
    assert parsed.body == (("Warning: Unstable interface.",), ("Slowly.",))


def test_a_heading_with_odd_indentation_is_found():
    # numpy.linalg.matrix_transpose adds a section to a docstring that Python 3.13 has dedented and 3.11 has not.
    doc = "Transposes.\n\nExamples\n--------\n>>> f()\n\n\n    Notes\n    -----\n    It is an alias.\n"
    assert body(doc) == ["It is an alias."]


def test_see_also_spelled_otherwise():
    doc = (
        "Sum.\n\nSee also\n--------\n`mean`, `std` : b\n- var - the variance\n* ~numpy.prod : product\ncumsum: sloppy\n"
    )
    assert parse_docstring(doc).see_also == ("mean", "std", "var", "numpy.prod", "cumsum")


def test_one_name_is_listed_once():
    assert parse_docstring("Sum.\n\nSee Also\n--------\nmean\nmean : again\n").see_also == ("mean",)


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (":func:`~torch.nn.functional.relu`", "relu"),
        (":func:`torch.relu`", "torch.relu"),
        (":py:class:`!Tensor`", "Tensor"),
        (":ref:`the guide <user_guide>`", "the guide"),
        ("`User Guide <https://example.org/x>`_ says", "User Guide says"),
        ("``x`` and `y`", "x and y"),
        (":math:`x^2`", "x^2"),
        ("**kwargs and **bold** and 2**3 and x ** y", "**kwargs and bold and 2**3 and x ** y"),
        (r"\*args, \**kwargs, a\_b", "*args, **kwargs, a_b"),
        ("known [1]_ and [Knuth97]_", "known and"),
        (".. math::\n   x = 1", "x = 1"),
        (".. note::\n   Beware.", "Note: Beware."),
        (".. deprecated:: 1.0\n   Use g.", ""),
        (".. versionchanged:: 1.0", ""),
        ("Example::", ""),
        ("Examples:\n  >>> f()\n  1", ""),
        ("Call it so:\n>>> f()\n1", "Call it so:"),
        ("====  ===\na     b\n====  ===", "a b"),
        ("as follows::", "as follows:"),
        ("", ""),
    ],
)
def test_plain_text(markup, text):
    assert plain(markup) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", ["One.", "Two."]),
        ("Uses e.g. A or i.e. B, cf. C. Then D.", ["Uses e.g. A or i.e. B, cf. C.", "Then D."]),
        ("See Press et al. (1992) for v1.2 of it. 3 of 4.", ["See Press et al. (1992) for v1.2 of it. 3 of 4."]),
        ("Really? Yes! [Good]", ["Really?", "Yes!", "[Good]"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_words_ignore_case_punctuation_and_space():
    assert words("Draw  samples, from\na (Normal) DISTRIBUTION.") == "draw samples from a normal distribution"
    assert words("… !") == ""


@given(st.text(max_size=200))
def test_any_text_is_taken_apart(doc):
    parsed = parse_docstring(doc)
    assert parsed.summary == parsed.summary.strip()
    assert all(said and "\n" not in said for paragraph in parsed.body for said in paragraph)
    assert all(parsed.body)


@given(st.lists(st.sampled_from(["A b c.", "D e?", "Fg h!", "(Ij) k."]), max_size=6))
def test_sentences_lose_nothing(parts):
    text = " ".join(parts)
    assert sentences(text) == parts
    assert " ".join(sentences(text)) == text


def test_a_missing_parser_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "docstring_parser", None)
    with pytest.raises(InputError, match=r"docstring_parser is not installed; run: pip install 'rankwright\[demo\]'"):
        parse_docstring("Sum.")
