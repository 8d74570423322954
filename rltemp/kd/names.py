"""How things are named on the command line and in Python: `name`, `name:value`, `name:key=value,key=value`.

One helper looks a name up in a table and answers a wrong one with the known ones and the closest match; one parses
the options. `rltemp.io.own_code` resolves `module:attribute`, which is how anything of a user's own is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from rltemp.errors import BadInputError
from rltemp.io.strict_json import parse

Entry = TypeVar("Entry")


def lookup(table: Mapping[str, Entry], name: str, kind: str, known: str = "") -> Entry:
    """Return `table[name]`; a wrong name is answered with the closest match and the known ones, or what `known` says.

    >>> lookup({"fixed": 1, "dtkd": 2}, "dtdk", "rule")
    Traceback (most recent call last):
    rltemp.errors.BadInputError: unknown rule 'dtdk': did you mean 'dtkd'? Known: dtkd, fixed
    """
    if isinstance(name, str) and name in table:
        return table[name]
    meant = closest(str(name), table)
    hint = f"did you mean {meant!r}? " if meant else ""
    raise BadInputError(f"unknown {kind} {name!r}: {hint}Known: {known or ', '.join(sorted(table))}")


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """What somebody who typed `name` means: the name nearly like it, or the first one that begins so.

    >>> closest("FIXD", ["fixed", "dtkd"]), closest("linear", ["fixed", "linear_schedule"]), closest("x", ["fixed"])
    ('fixed', 'linear_schedule', None)
    """
    names, small = {one.lower(): one for one in known}, name.lower()
    alike = get_close_matches(small, names, n=1, cutoff=cutoff) or [
        one for one in names if one.startswith(small or "?")
    ]
    return names[alike[0]] if alike else None


def spelled(name: str | Path, what: str) -> str:
    """Return a name as it is, and a path, such as that of a policy file, as a name.

    >>> spelled(Path("policy.safetensors"), "rule")
    'policy.safetensors'
    """
    if not isinstance(name, (str, Path)):
        raise BadInputError(f"a {what} is given by its name, or by the path of its file; got {name!r:.80}")
    return str(name)


def split_spec(spec: str) -> tuple[str, str]:
    """Split `name:rest` at the first colon; `rest` is empty where there is none.

    >>> split_spec("dtkd:reference=4")
    ('dtkd', 'reference=4')
    """
    name, _, rest = spec.partition(":")
    return name, rest


def shareable(spec: str) -> str:
    """What `spec` names, without the folders of the machine that it is on.

    >>> shareable("imagefolder:/data/flowers/"), shareable("matched:runs/p/policy.safetensors")
    ('imagefolder:flowers', 'matched:policy.safetensors')
    """
    return ":".join(part.replace("\\", "/").rstrip("/").rpartition("/")[2] for part in spec.split(":"))


def call_with_options(factory: Callable[..., Entry], options: str, spec: str) -> Entry:
    """Call `factory` with options written as `value` (its first parameter) or `key=value,key=value`.

    Values are read as JSON where they are JSON (`4`, `true`, `null`) and as text otherwise.

    >>> call_with_options(lambda reference=4.0, warmup=0.1: (reference, warmup), "warmup=0.5", "demo:warmup=0.5")
    (4.0, 0.5)
    """
    known = list(inspect.signature(factory).parameters)
    given: dict[str, Any] = {}
    for item in filter(None, options.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            if given or not known:
                raise BadInputError(f"{spec!r}: cannot read {item!r}. Write options as key=value,key=value")
            key, value = known[0], item
        if key in given:
            raise BadInputError(f"{spec!r}: option {key!r} is given twice")
        lookup(dict.fromkeys(known), key, f"option of {split_spec(spec)[0]!r}")
        given[key] = _value(value)
    try:
        return factory(**given)
    except TypeError as error:
        raise BadInputError(f"{spec!r}: {error}") from error


def _value(text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        return text
