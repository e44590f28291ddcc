"""Settings of one command from YAML, --set and flags; precedence: flag > --set > YAML > default."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from retrieval.errors import InputError, did_you_mean
from retrieval.textfiles import numbered_lines


def apply_settings(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse `arguments`, with what --config and --set say as defaults.

    Dotted keys (`loss.temperature`) are collected in `args.nested`; a verb that takes none refuses them.

    Raises:
        InputError: at an unknown key or flag (naming the nearest valid one) or a value of the wrong type.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--set", action="append", default=[], dest="assignments")
    early, _ = first.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    values = read_yaml(Path(early.config)) if early.config else {}
    values.update(parse_assignment(text) for text in early.assignments)

    actions = {a.dest: a for a in parser._actions if a.dest not in ("help", "version", "config", "assignments")}
    nested: dict[str, Any] = {}
    for key, value in flatten(values).items():
        dest = key.replace("-", "_")
        if "." in dest and parser.get_default("nested") is not None:
            nested[dest] = value
        elif dest in actions:
            action = actions[dest]
            action.default = _checked(parser, action, value)
            action.required = False
        else:
            raise InputError(f"unknown setting {key!r}{did_you_mean(dest, actions)}")
    args, unknown = parser.parse_known_intermixed_args(list(arguments))  # flags may stand between positionals
    if unknown:
        flags = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        kind = "flag" if unknown[0].startswith("-") else "argument"
        hint = did_you_mean(unknown[0].split("=")[0], flags) if kind == "flag" else ""
        raise InputError(f"unknown {kind} {unknown[0]!r}{hint}; see: {parser.prog} --help")
    args.nested = nested
    return args


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; errors name file and line."""
    text = "\n".join(line for _, line in numbered_lines(path))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8") if path.suffix != ".gz" else text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "cannot be parsed"
        raise InputError(f"not YAML: {reason}", path=path, line=mark.line + 1 if mark else None) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"got a YAML {type(values).__name__}; wanted a mapping of settings", path=path)
    return {str(key): value for key, value in values.items()}


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML, so 2e-5, true, [1, 2] and words mean what they look like."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set got {text!r}; wanted KEY=VALUE")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    if isinstance(parsed, str):  # YAML 1.1 reads 2e-5 as a word
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    return key.strip(), parsed


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into dotted keys: {"loss": {"temperature": 1}} → {"loss.temperature": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _checked(parser: argparse.ArgumentParser, action: argparse.Action, value: Any) -> Any:
    """Give a setting's value the type and the choices that its flag has."""
    if isinstance(action, argparse._StoreTrueAction | argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise InputError(f"setting {action.dest!r} got {value!r}; wanted true or false")
        return value
    if value is None or isinstance(value, list):
        return value
    try:
        return parser._get_values(action, [str(value)]) if action.nargs is None else value
    except argparse.ArgumentError as error:
        raise InputError(f"setting {action.dest!r}: {error.message}") from None
