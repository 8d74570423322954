"""What is known of each rule, divergence and method, read off its docstring and its options: what listings show."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rltemp.kd.divergences import DIVERGENCES
from rltemp.rules import RULES
from rltemp.rules.published_constants import DKD
from rltemp.rules.published_methods import METHODS, summary

_LINE = re.compile(r"^(?P<key>[A-Z][a-z]+): (?P<text>.*?)(?=^[A-Z][a-z]+:|^\s*$|\Z)", re.MULTILINE | re.DOTALL)

FACTORIES: Mapping[str, Callable[..., Any]] = METHODS | DIVERGENCES | RULES
"""By name: the rule's or the divergence's own, where a method is called after it."""


@dataclass(frozen=True)
class Entry:
    """One line of a table, described.

    Args:
        name: By which it is asked for.
        summary: What it does.
        options: With their defaults, as they are written after the name.
        facts: What its docstring says under `Formula`, `Source`, `Labels`, `Bounds`, `Invariant`, `Guard`, ...
    """

    name: str
    summary: str
    options: str
    facts: Mapping[str, str]

    def lines(self) -> Iterator[str]:
        """The entry as text."""
        yield self.name + mark(self.name)
        yield f"    {self.summary}"
        yield f"    Options: {self.options or 'none'}"
        yield from (f"    {key}: {text}" for key, text in self.facts.items())


def mark(spec: str) -> str:
    """What stands behind a name in tables, where its formula was inferred from an abstract.

    >>> mark("matched:cist:ratio=3"), mark("dtkd")
    (' (inferred)', '')
    """
    named = (FACTORIES.get(part) for part in spec.split(":"))
    inferred = any(facts(factory).get("Source", "").startswith("inferred") for factory in named)
    return " (inferred)" if inferred else ""


def facts(factory: Callable[..., Any] | None) -> dict[str, str]:
    """What a docstring says in its lines `Key: text`, each to the next key or the next empty line.

    >>> facts(RULES["fixed"])["Formula"]
    'T_t = T_s = T, weight T^2; or a T_t of its own, weight T_s T_t.'
    """
    text = inspect.getdoc(factory) if factory else None
    found = {match["key"]: " ".join(match["text"].split()) for match in _LINE.finditer(text or "")}
    return {key: value for key, value in found.items() if key not in ("Args", "Returns", "Raises")}


def rules() -> list[Entry]:
    """Every temperature rule."""
    return [_entry(name, factory) for name, factory in RULES.items()]


def divergences() -> list[Entry]:
    """Every divergence."""
    return [_entry(name, factory) for name, factory in DIVERGENCES.items()]


def methods() -> list[Entry]:
    """Every method: its rule's source, its objective, and what it needs labels for beside the cross-entropy."""
    found = []
    for name, factory in METHODS.items():
        kept = ("Source", "Labels", "Guard", *(("Formula",) if name not in RULES | DIVERGENCES else ()))
        known = {key: text for key, text in facts(FACTORIES[name]).items() if key in kept}
        if pairs := getattr(factory, "by_pair", DKD if name == "dkd" else None):
            known["Pairs"] = ", ".join(pairs)
        found.append(Entry(name, summary(name), options_of(factory), known))
    return found


def _entry(name: str, factory: Callable[..., Any]) -> Entry:
    first = (inspect.getdoc(factory) or "").partition("\n")[0]
    return Entry(name, first, options_of(factory), facts(factory))


def options_of(factory: Callable[..., Any]) -> str:
    """Options with their defaults.

    >>> options_of(RULES["ttm"])
    'gamma=0.25'
    """
    parameters = inspect.signature(factory).parameters.values()
    return ",".join(f"{parameter.name}={_value(parameter.default)}" for parameter in parameters)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
