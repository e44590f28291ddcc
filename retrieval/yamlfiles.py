"""YAML settings: reading, where what is wrong is told by file and line, and writing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from retrieval.errors import InputError
from retrieval.textfiles import decode, numbered_bytes


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping (UTF-8, `.gz` too); an empty file is an empty mapping.

    Raises:
        InputError: with the file, and the line where one is known: not UTF-8, not YAML, a key that stands there twice,
            or no mapping.

    """
    text = "".join(decode(raw, path, number) for number, _, raw in numbered_bytes(path))
    try:
        values = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise InputError(f"not YAML: {reason}", path=path, line=mark.line + 1 if mark else None) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"got a YAML {type(values).__name__}; wanted a mapping of settings", path=path)
    return {str(key): value for key, value in values.items()}


def parse_yaml(text: str) -> Any:
    """Parse one YAML document; scalars mean what they mean in YAML 1.2, so `no` is a word and 2e-5 a number.

    Raises:
        yaml.YAMLError or ValueError: it is none.

    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML that :func:`parse_yaml` turns back into an equal one."""
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if parse_yaml(text) == values:
        return text
    # Some line ends (U+0085, U+2028) do not survive as they are.
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=False)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses the second of two equal keys instead of forgetting the first."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (its base's)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper; quotes words that either version of YAML takes for something else."""


# The core schema of YAML 1.2, with 010 as a word. PyYAML follows 1.1: no is false, 2e-5 a word, 010 is 8, 12:30 is 750.
for _tag, _pattern, _first in (
    ("null", r"(|~|null|Null|NULL)$", ["", "~", "n", "N"]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$", list("-+.0123456789")),
    ("merge", r"<<$", ["<"]),
):
    for _reader_or_writer in (_Loader, _Dumper):
        _reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
