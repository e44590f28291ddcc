"""Reading YAML settings; what is wrong is told by file and line."""

from __future__ import annotations

import re
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
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise InputError(f"not YAML: {reason}", path=path, line=mark.line + 1 if mark else None) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"got a YAML {type(values).__name__}; wanted a mapping of settings", path=path)
    return {str(key): value for key, value in values.items()}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses the second of two equal keys, and to which 2e-5 is a number as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("+-.0123456789")
)
