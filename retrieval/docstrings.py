"""Docstrings of numpy's, scipy's, scikit-learn's and torch's kind, taken apart: summary, body, "See Also" names.

docstring_parser finds the sections (0.2 MB, no dependencies; numpydoc brings Sphinx and 21 other distributions,
77 MB). What it leaves to us: signature lines that C functions put first, summaries of several lines, roles and
directives of reStructuredText, and the names in a "See Also" section.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retrieval.errors import require

_SECTIONS = (
    *("Parameters", "Other Parameters", "Arguments", "Attributes", "Methods"),
    *("Returns", "Yields", "Receives", "Raises", "Warns", "Warnings", "Notes"),
)
_SEE_ALSO = ("See Also", "See also")
# Code and citations are no prose; and some packages run their examples at import, with random numbers.
_DROPPED = ("Examples", "References")

_ROLE = re.compile(r":(?:[\w+-]+:)*[\w+-]+:`([^`]*)`")
_OBJECT_ROLE = re.compile(r":(?:py:)?(?:func|class|meth|mod|obj|exc):`([^`]*)`")
_QUOTED = re.compile(r"``([^`]*)``_*|`([^`]*)`_*")
_TARGET = re.compile(r"\s*<[^<>]*>$")
_FOOTNOTE = re.compile(r"\s?\[(?:\d+|\w+\d)\]_")
_STRONG = re.compile(r"(?<!\w)\*\*(?=\S)([^*\n]+)(?<=\S)\*\*(?!\w)")
_CODE = re.compile(r"^\s*>>>", re.MULTILINE)
_LEFT_OUT = re.compile(r"\.\. (?:versionadded|versionchanged|deprecated)::|Examples?(?: usage)?::?\s*$", re.IGNORECASE)
_DIRECTIVE = re.compile(r"\.\. ([\w-]+)::[ ]?")
_ESCAPED = re.compile(r"\\([*_ ])")
_HEADING = re.compile(r"^[ \t]+([A-Z][A-Za-z ]+)\n[ \t]+(-{3,})[ \t]*$", re.MULTILINE)
_RULER = re.compile(r"(?<!\S)(?:={3,}|-{3,}|~{3,})(?!\S)")
_SEE_ALSO_DIRECTIVE = re.compile(r"^([ \t]*)\.\. seealso::(.*(?:\n(?:\1[ \t]+\S.*|[ \t]*$))*)", re.MULTILINE)
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_NAMES = re.compile(rf"{_NAME}(?:\s*,\s*{_NAME})*\s*,?")
_CALL = re.compile(rf"(?:class |def )?{_NAME}\s*\(")
# A full stop ends a sentence where a capital follows, and where it does not belong to an abbreviation.
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\ba\.k\.a)(?<!\bcf)(?<!\bvs)(?<!\bal)(?<!\bEq)(?<!\bFig)(?<!\bresp)[.!?]\s+(?=[A-Z\[(])"
)


@dataclass(frozen=True, slots=True)
class Docstring:
    """What a docstring says, as plain text.

    summary: the first sentence, without its full stop; "" where there is none.
    body: the paragraphs after it, in order, each a list of sentences. No signature, "See Also" or references.
    see_also: names as written there, such as ``hypot``, ``numpy.hypot`` or ``ndarray.sort``; not resolved.
    """

    summary: str
    body: tuple[tuple[str, ...], ...]
    see_also: tuple[str, ...]


def parse_docstring(doc: str) -> Docstring:
    """Take `doc` apart; sections are those of numpydoc, everything else is read as paragraphs.

    Raises:
        InputError: if docstring_parser is not installed.
    """
    text, see_also = _take_see_also_directives(_without_signatures(inspect.cleandoc(doc)))
    paragraphs: list[str] = []
    for title, section in _sections(text):
        if title in _SEE_ALSO:
            see_also += _listed_names(section)
        elif title not in _DROPPED:
            paragraphs += _paragraphs(section)
    cleaned = [(original, sentences(plain(original))) for original in paragraphs]
    # A note or a formula may stand before the summary; a summary is prose.
    first = next((i for i, (original, said) in enumerate(cleaned) if said and not original.startswith("..")), None)
    summary = ""
    body = [said for _, said in cleaned]
    if first is not None:
        summary = body[first][0].rstrip(" .:;,")
        body[first] = body[first][1:]
    return Docstring(summary, tuple(tuple(said) for said in body if said), tuple(dict.fromkeys(see_also)))


def plain(text: str) -> str:
    """Return a paragraph on one line without reStructuredText: ":func:`~torch.abs`" and "``abs``" become "abs".

    Code examples and the history of the interface ("New in version …") become "".
    """
    text = _CODE.split(text, maxsplit=1)[0]
    if _LEFT_OUT.match(text):
        return ""
    text = _ROLE.sub(lambda match: _shown(match[1]), text)
    text = _QUOTED.sub(lambda match: _shown(match[1] or match[2] or ""), text)
    text = _STRONG.sub(r"\1", _FOOTNOTE.sub("", text))
    text = _DIRECTIVE.sub(lambda match: _named(match[1]), _RULER.sub(" ", text))
    return " ".join(_ESCAPED.sub(r"\1", text).replace("::", ":").split())


def sentences(text: str) -> list[str]:
    """Split one paragraph of plain text into its sentences."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    pieces = (text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True))
    return [piece for piece in pieces if piece]


def words(text: str) -> str:
    """Return the words of `text` in lower case, joined by single spaces: equal for what reads the same."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield ("", description) and then (title, content) of each numpydoc section."""
    numpydoc: Any = require("docstring_parser", "demo").numpydoc
    titles = (*_SECTIONS, *_SEE_ALSO, *_DROPPED)
    # A heading that was pasted with other indentation; Python 3.13 changes that of docstrings.
    text = _HEADING.sub(r"\1\n\2", text)
    parsed = numpydoc.NumpydocParser([numpydoc.Section(title, title) for title in titles]).parse(text)
    between = "\n\n" if parsed.blank_after_short_description else "\n"
    yield "", between.join(filter(None, (parsed.short_description, parsed.long_description)))
    for entry in parsed.meta:
        yield entry.args[0], entry.description or ""


def _paragraphs(text: str) -> list[str]:
    """Split at blank lines, and before a line at the margin that follows an indented one (the next parameter)."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        next_item = paragraphs[-1] and not line.startswith(" ") and paragraphs[-1][-1].startswith(" ")
        if not line.strip() or next_item:
            paragraphs.append([])
        if line.strip():
            paragraphs[-1].append(line)
    return ["\n".join(lines).strip() for lines in paragraphs if lines]


def _without_signatures(text: str) -> str:
    """Drop the calls that C functions begin with, such as "abs(input, *, out=None) -> Tensor"."""
    while match := _CALL.match(text):
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        rest = re.compile(r"[ \t]*(?:->[^\n]*|:)?[ \t]*(?:\n|$)").match(text, end)
        if depth or not rest:
            break  # a sentence that begins with a call
        text = text[rest.end() :].lstrip()
    return text


def _take_see_also_directives(text: str) -> tuple[str, list[str]]:
    """Return the text without its ``.. seealso::`` blocks, and the names that roles in them refer to."""
    names = []
    for match in _SEE_ALSO_DIRECTIVE.finditer(text):
        names += [_TARGET.sub("", name).lstrip("~!.").removesuffix("()") for name in _OBJECT_ROLE.findall(match[2])]
    return _SEE_ALSO_DIRECTIVE.sub("", text), [name for name in names if re.fullmatch(_NAME, name)]


def _listed_names(section: str) -> list[str]:
    """Return the names of a "See Also" section: "a, b : what they do", one entry a line, comments indented."""
    names: list[str] = []
    for line in section.splitlines():
        if line and not line[0].isspace():
            head = _QUOTED.sub(lambda match: match[1] or match[2] or "", _ROLE.sub(r"\1", line))
            head = re.split(r"\s*:(?:\s|$)|\s+-+\s", head.lstrip("-* ~"), maxsplit=1)[0].strip()
            if _NAMES.fullmatch(head):
                names += [name.strip() for name in head.split(",") if name.strip()]
    return names


def _shown(reference: str) -> str:
    """Return what a reader sees of a reference: "text <target>" shows text, "~a.b" shows b."""
    text = _TARGET.sub("", reference) or reference
    return text.rpartition(".")[2] if text.startswith("~") else text.removeprefix("!")


def _named(directive: str) -> str:
    return f"{directive.capitalize()}: " if directive.lower() in ("note", "warning") else ""
