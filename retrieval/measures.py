"""Names of measures: ir-measures' own, with trec_eval's and ranx's spellings as aliases.

    nDCG@10   nDCG(dcg='exp-log2')@10   RR@10   AP   AP(rel=2)@100   R@100   P@5   Success@10   Judged@10
    ndcg_cut_10   recip_rank   map   map_cut_100   recall_100   P_5   success_5        as in trec_eval
    ndcg@10   ndcg_burges@10   mrr@10   map@100   recall@10   precision@5   hit_rate@5   as in ranx

The measures of the first line are computed by `rankers.metrics`; every other name goes to ir-measures.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankers.metrics import Gain
from retrieval.errors import InputError, did_you_mean

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "AP", "R@100")

# Measure → whether it needs a cut-off.
NATIVE: Mapping[str, bool] = {
    "nDCG": False,
    "AP": False,
    "RR": False,
    "P": True,
    "R": True,
    "Success": True,
    "Judged": False,
}
# Other tools' spellings that differ by more than upper and lower case from ir-measures' names and aliases.
ALIASES: Mapping[str, str] = {
    "NDCG": "nDCG",
    "MAP": "AP",
    "MRR": "RR",
    "Precision": "P",
    "Recall": "R",
    "ndcg_cut": "nDCG",
    "map_cut": "AP",
    "recip_rank": "RR",
    "hit_rate": "Success",
    "r_precision": "Rprec",
    "r-precision": "Rprec",
    "iprec_at_recall": "IPrec",
    "set_P": "SetP",
    "set_relative_P": "SetRelP",
    "set_recall": "SetR",
    "set_F": "SetF",
    "set_map": "SetAP",
    "num_q": "NumQ",
    "num_ret": "NumRet",
    "num_rel": "NumRel",
    "num_rel_ret": "NumRelRet",
}

_SPELLING = re.compile(
    r"(?P<name>[^\W\d][\w-]*?)(?:\((?P<settings>.*)\))?(?:(?:@|_at_|[._])(?P<cutoff>\d+(?:\.\d+)?))?"
)


@dataclass(frozen=True)
class Measure:
    """One measure, as it is computed.

    name: ir-measures' name without settings, such as "nDCG".
    k: the cut-off, None for the whole list.
    rel: the lowest grade that counts as relevant (≥ 1).
    gain: of nDCG, "linear" or "exp2"; None for measures that use no gain.
    gains: of nDCG, grade → grade, applied to the judgements first.
    judged_only: leave documents without a judgement out of the ranking.
    provided: the ir-measures object, when `rankers.metrics` does not compute this measure.
    """

    name: str
    k: int | None = None
    rel: int = 1
    gain: Gain | None = None
    gains: Mapping[int, int] = field(default_factory=dict)
    judged_only: bool = False
    provided: Any = None


def parse_measures(names: Iterable[str]) -> dict[str, Measure]:
    """Return name as typed → Measure; a name that is given twice counts once.

    Raises:
        InputError: a name is unknown (the nearest valid one is named), or a setting does not fit.
    """
    if isinstance(names, str):
        raise InputError(f"measures must be a list of names, got the text {names!r}; write [{names!r}]")
    parsed = {str(name): parse_measure(str(name)) for name in names}
    if not parsed:
        raise InputError(f"no measure was asked for; wanted names such as {', '.join(DEFAULT_MEASURES)}")
    return parsed


def parse_measure(text: str) -> Measure:
    """Read one name in any of the spellings of this module.

    Raises:
        InputError: as `parse_measures`.
    """
    match = _SPELLING.fullmatch(text.strip())
    if match is None:
        raise InputError(f"measure {text!r} is not of the form nDCG@10 or nDCG(dcg='exp-log2')@10")
    spelled = match["name"]
    settings = _settings(match["settings"], text)
    cutoff = match["cutoff"]
    if spelled.lower() == "ndcg_burges":
        spelled = "nDCG"
        settings.setdefault("dcg", "exp-log2")
    name = _resolve(spelled, NATIVE)
    if name is None:
        return _provided(spelled, settings, cutoff, text)
    if cutoff is not None:
        settings["cutoff"] = int(cutoff) if cutoff.isdecimal() else float(cutoff)
    return _native(name, settings, text)


def _resolve(spelled: str, names: Iterable[str]) -> str | None:
    """Find `spelled` among names and aliases; upper and lower case matter only where they tell two apart."""
    known = {**{name: name for name in names}, **{a: n for a, n in ALIASES.items() if n in names}}
    if spelled in known:
        return known[spelled]
    return {spelling.lower(): name for spelling, name in known.items()}.get(spelled.lower())


def _settings(text: str | None, measure: str) -> dict[str, Any]:
    """Read `k=v, …` as Python literals."""
    if not text:
        return {}
    try:
        call = ast.parse(f"_({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(keyword.arg for keyword in call.keywords):
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise InputError(f"measure {measure!r}: wanted settings as (name=value, …), got ({text})") from None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_gains(value: Any) -> bool:
    return isinstance(value, dict) and all(type(grade) is int for pair in value.items() for grade in pair)


# Setting → (which measures take it, whether a value fits, what was wanted).
_CHECKS: Mapping[str, tuple[frozenset[str], Callable[[Any], bool], str]] = {
    "cutoff": (frozenset(NATIVE), _is_count, "an integer ≥ 1"),
    "rel": (frozenset(NATIVE) - {"nDCG", "Judged"}, _is_count, "an integer ≥ 1"),
    "dcg": (frozenset({"nDCG"}), lambda value: value in ("log2", "exp-log2"), "'log2' or 'exp-log2'"),
    "gains": (frozenset({"nDCG"}), _is_gains, "a dict from grade to grade such as {1: 1, 2: 5}"),
    "judged_only": (frozenset(NATIVE) - {"Judged"}, lambda value: type(value) is bool, "True or False"),
}


def _native(name: str, settings: Mapping[str, Any], text: str) -> Measure:
    allowed = [setting for setting, (names, _, _) in _CHECKS.items() if name in names]
    for setting, value in settings.items():
        if setting not in allowed:
            raise InputError(f"measure {text!r}: unknown setting {setting!r}{did_you_mean(setting, allowed)}")
        _, fits, wanted = _CHECKS[setting]
        if not fits(value):
            raise InputError(f"measure {text!r}: {setting} must be {wanted}, got {value!r}")
    if NATIVE[name] and "cutoff" not in settings:
        raise InputError(f"measure {text!r} needs a cut-off, such as {name}@10")
    gain: Gain = "exp2" if settings.get("dcg") == "exp-log2" else "linear"
    return Measure(
        name,
        k=settings.get("cutoff"),
        rel=settings.get("rel", 1),
        gain=gain if name == "nDCG" else None,
        gains=settings.get("gains", {}),
        judged_only=settings.get("judged_only", False),
    )


def provider() -> Any:
    """Return ir-measures' providers whose value depends on the ranking alone, as one.

    Left out are those that score only some of the queries (Accuracy), that need judgements per subtopic, or
    that compute what `rankers.metrics` does.
    """
    import ir_measures
    from ir_measures.providers import FallbackProvider

    parts = [ir_measures.pytrec_eval, ir_measures.cwl_eval, ir_measures.compat, ir_measures.gdeval]
    return FallbackProvider(parts)  # type: ignore[no-untyped-call]


def _provided(spelled: str, settings: dict[str, Any], cutoff: str | None, text: str) -> Measure:
    """Build ir-measures' object, and make sure now, before any file is read, that it can be computed."""
    from ir_measures.measures import registry

    name = _resolve(spelled, registry)
    if name is None:
        near = did_you_mean(spelled, {*NATIVE, *ALIASES, *registry})
        hint = near if near.startswith("; did") else f"; such as {', '.join(DEFAULT_MEASURES)}, P@5, Success@5"
        raise InputError(f"unknown measure {text!r}{hint}")
    prototype = registry[name]
    known = prototype.SUPPORTED_PARAMS
    try:
        if cutoff is not None:
            at = prototype.AT_PARAM
            settings[at] = known[at].dtype(cutoff) if at in known else cutoff
        measure = prototype(**settings)
        measure.validate_params()
    except (AssertionError, ValueError) as error:
        choices = ", ".join(known) or "none"
        raise InputError(f"measure {text!r}: {error}; the settings of {name} are: {choices}") from None
    providers = provider().providers
    if not any(part.is_available() and part.supports(measure) for part in providers):
        fixes = [part.install_instructions() for part in providers if part.supports(measure)]
        fix = f"it needs: {fixes[0]}" if fixes else "no provider computes it from a ranking with these settings"
        raise InputError(f"measure {text!r} is not available: {fix}")
    return Measure(measure.NAME, k=measure.params.get("cutoff"), provided=measure)
