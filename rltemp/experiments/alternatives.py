"""Rules with alternatives: `fixed:1|2|4` stands for three, of which validation data choose one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rltemp.kd.names import split_spec
from rltemp.rules.controls import WRAPPERS
from rltemp.rules.published_methods import METHODS


def alternatives(spec: str) -> list[str]:
    """Every concrete rule that `spec` stands for: options may list values with `|`.

    >>> alternatives("dtkd:reference=2|4,warmup=0")
    ['dtkd:reference=2,warmup=0', 'dtkd:reference=4,warmup=0']
    >>> alternatives("fixed:1|2")
    ['fixed:1', 'fixed:2']
    >>> alternatives("matched:shuffled:fixed:1|2")
    ['matched:shuffled:fixed:1', 'matched:shuffled:fixed:2']
    """
    name, options = split_spec(spec)
    if name in WRAPPERS:
        return [f"{name}:{inner}" for inner in alternatives(options)]
    if name not in METHODS or "|" not in options:
        return [spec]
    listed = [[key + value for value in values] for key, values in _listed(options)]
    return [f"{name}:{','.join(chosen)}" for chosen in itertools.product(*listed)]


def _listed(options: str) -> Iterator[tuple[str, list[str]]]:
    """Each option as what stands before its values (`reference=`, or nothing) and its values."""
    for item in options.split(","):
        key, equals, values = item.rpartition("=")
        yield key + equals, values.split("|")


def to_choose(spec: str) -> list[str]:
    """The alternatives where there is a choice among several; else none."""
    found = alternatives(spec)
    return found if len(found) > 1 else []


def choice(spec: str, best: str) -> str:
    """What was chosen from what: `reference=2 chosen on validation from 1|2|4|8`."""
    (name, options), (_, found) = split_spec(spec), split_spec(best)
    if name in WRAPPERS:
        return choice(options, found)
    written, chosen = _listed(options), found.split(",")
    parts = [
        f"{value} chosen on validation from {'|'.join(values)}"
        for value, (_, values) in zip(chosen, written, strict=True)
        if len(values) > 1
    ]
    return ", ".join(parts)
