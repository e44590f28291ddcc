"""Settings of one command from YAML, --set and flags; precedence: flag > --set > YAML > default."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from retrieval.errors import InputError, did_you_mean
from retrieval.yamlfiles import parse_yaml, read_yaml


def apply_settings(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse `arguments`, with what --config and --set say as defaults.

    Dotted keys (`loss.temperature`) are collected in `args.nested`; a verb that takes none refuses them.

    Raises:
        InputError: at an unknown key or flag (naming the nearest valid one) or a value of the wrong type.
    """
    first = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config")
    first.add_argument("--set", action="append", default=[], dest="assignments")
    try:
        early, _ = first.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; see: {parser.prog} --help") from None
    values = flatten(read_yaml(Path(early.config))) if early.config is not None else {}
    for text in early.assignments:
        key, value = parse_assignment(text)
        values = {**values, **flatten({key: value})}

    actions = {a.dest: a for a in parser._actions if a.dest not in ("help", "version", "config", "assignments")}
    nested: dict[str, Any] = {}
    lists: dict[str, Any] = {}
    for key, value in values.items():
        dest = key.replace("-", "_")
        if dest.removesuffix(".name") in actions:  # loss: {name: bixse, scale: 20}
            dest = dest.removesuffix(".name")
        if "." in dest and parser.get_default("nested") is not None:
            nested[dest] = value
        elif dest in actions:
            action = actions[dest]
            action.required = False
            if isinstance(action, argparse._AppendAction):
                lists[dest] = list(value) if isinstance(value, list) else [value]
            else:
                action.default = _checked(parser, action, value)
        else:
            hint = did_you_mean(dest.partition(".")[0], actions)
            if hint.startswith("; known") and "." not in dest and parser.get_default("nested") is not None:
                hint = f"; if it is the loss's, write loss.{dest}{hint}"
            raise InputError(f"unknown setting {key!r}{hint}")
    _refuse_unknown_flags(parser, arguments)
    # Flags may stand between positionals; but intermixed parsing loses a "--".
    parse = parser.parse_known_args if "--" in arguments else parser.parse_known_intermixed_args
    args, unknown = parse(list(arguments))
    if unknown:
        raise InputError(f"unknown argument {unknown[0]!r}; see: {parser.prog} --help")
    for dest, value in lists.items():  # as a default, the list would be added to and not replaced
        if getattr(args, dest) is None:
            setattr(args, dest, value)
    args.nested = nested
    return args


def _refuse_unknown_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Name the flag nearest to a mistyped one, before argparse misses the one that was meant."""
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for argument in takewhile(lambda argument: argument != "--", arguments):
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise InputError(f"unknown flag {flag!r}{did_you_mean(flag, known)}; see: {parser.prog} --help")


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML, so 2e-5, true, [1, 2] and {scale: 20} are what they look like.

    Other text is taken as it is: `query_prompt=query: ` ends in a space and is no mapping.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set got {text!r}; wanted KEY=VALUE")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        parsed = value
    is_plain = value.lstrip()[:1] not in tuple("'\"[{#")
    return key.strip(), value if is_plain and isinstance(parsed, str | list | dict) else parsed


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
    if value is None or action.nargs is not None:
        return value
    if isinstance(value, list) and "," in str(action.metavar):  # a flag of several values between commas
        value = ",".join(map(str, value))
    if isinstance(value, bool | list):
        wanted = "a number" if action.type in (int, float) else "text; put it in quotes"
        raise InputError(f"setting {action.dest!r} got {value!r}; wanted {wanted}")
    try:
        return parser._get_values(action, [str(value)])
    except argparse.ArgumentError as error:
        raise InputError(f"setting {action.dest!r}: {error.message}") from None
