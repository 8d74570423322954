"""The help of a command, read off its dataclass, and the answer to a misspelt option; plain text, here and in a pipe.

`--help` is one screen: examples and the common options. `--help-all` explains every option. tyro reads the values.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from rltemp.cli.commands import COMMANDS
from rltemp.errors import BadInputError
from rltemp.kd.names import closest

HELP = ("-h", "--help", "--help-all")
WIDTH = 80
_POSITIONAL, _NO_PREFIX = (get_args(marked[int])[1] for marked in (tyro.conf.Positional, tyro.conf.OmitArgPrefixes))
_INDENT = 22
_VALUES = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """What the help says of an option.

    Args:
        flags: As they are written, as in `--html` and `--no-html`; FILE for a word without a name.
        values: What is written behind it, as in INT or `cpu|cuda`; empty for a flag.
        text: What it is for.
        default: What holds where it is not given; empty where the text says that.
    """

    flags: tuple[str, ...]
    values: str
    text: str
    default: str

    def lines(self, text: str) -> str:
        """Its names and values, and this text beside them or below."""
        folded = textwrap.wrap(text, WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
        head = f"  {self.head}"
        beside = folded.pop(0) if folded and len(head) + 2 <= _INDENT else ""
        return "\n".join([f"{head:<{_INDENT}}{beside}".rstrip(), *(" " * _INDENT + line for line in folded)])

    @property
    def head(self) -> str:
        """Its names and values, as in `--seed INT`."""
        return f"{', '.join(self.flags)} {self.values}".rstrip()


def options_of(kind: type[Any], prefix: str = "") -> Iterator[Option]:
    """Every option of a command's dataclass, those of a dataclass inside among them."""
    hints, words = get_type_hints(kind, include_extras=True), _words(kind)
    for field in fields(kind):
        hint, *marks = (
            get_args(hints[field.name]) if hasattr(hints[field.name], "__metadata__") else [hints[field.name]]
        )
        name = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name.replace("_", "-"))
        if is_dataclass(hint) and isinstance(hint, type):
            yield from options_of(hint, prefix if _NO_PREFIX in marks else f"{prefix}{name}.")
        else:
            positional = _POSITIONAL in marks
            flags = (name.upper(),) if positional else _flags(hint, prefix, name)
            yield Option(flags, "" if positional else _values(hint), words.get(field.name, ""), _default(field, flags))


def page(command: str, kind: type[Any], *, everything: bool = False) -> str:
    """The help of a command: one screen with the common options, or every option."""
    about, options = COMMANDS[command], list(options_of(kind))
    common = [one for name in about.common for one in options if one.flags[0] in (name, f"--{name}")]
    rest = [one for one in options if one not in common]
    named = [one for one in options if not one.flags[0].startswith("-")]
    words = " ".join(one.head if one.default == "required" else f"[{one.head}]" for one in named)
    lines = [
        " ".join(f"usage: rltemp {command} [OPTIONS] {words}".split()),
        "",
        *_folded(inspect.getdoc(kind) or "", everything),
        "",
        "Examples:",
    ]
    lines += [f"  rltemp {example}" for example in about.examples]
    for title, shown in (("Common options:", common), ("Further options:", rest if everything else [])):
        lines += ["", title, *(_explained(one, everything) for one in shown)] if shown else []
    if not everything and rest:
        lines += ["", f"`rltemp {command} --help-all` explains {len(rest)} more."]
    return "\n".join(lines)


def _folded(text: str, everything: bool) -> list[str]:
    """A docstring's paragraphs, or its first alone."""
    paragraphs = text.split("\n\n") if everything else [text.partition("\n\n")[0]]
    return textwrap.fill(paragraphs[0], WIDTH).splitlines() + [textwrap.fill(one, WIDTH) for one in paragraphs[1:]]


def _explained(option: Option, everything: bool) -> str:
    """An option with its whole text, or with the first sentence of it."""
    text = option.text if everything else re.split(r"[.;] |[.]$", option.text, maxsplit=1)[0]
    return option.lines(f"{text} ({option.default})" if option.default else text)


def refuse_unknown(kind: type[Any], command: str, words: Sequence[str]) -> None:
    """Refuse a name that the command does not have.

    Raises:
        BadInputError: With the one that begins so, or the closest.
    """
    flags = [flag for option in options_of(kind) for flag in option.flags]
    known = [flag.removeprefix("--") for flag in flags if flag.startswith("--")]
    for word in words:
        name = word.partition("=")[0].replace("_", "-").removeprefix("--")
        if word.startswith("--") and name not in known:
            begun = [flag for flag in known if flag.startswith(name)]
            meant = begun[0] if len(begun) == 1 else closest(name, known)
            hint = f": did you mean --{meant}?" if meant else "."
            raise BadInputError(f"unknown option --{name}{hint} `rltemp {command} --help-all` explains them all")


def _words(kind: type[Any]) -> dict[str, str]:
    """The text under each field, those of the classes that it derives from among them, on one line."""
    found: dict[str, str] = {}
    for base in reversed([one for one in kind.__mro__ if is_dataclass(one)]):
        (written,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = written.body if isinstance(written, ast.ClassDef) else []
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def _flags(hint: Any, prefix: str, name: str) -> tuple[str, ...]:
    return (f"--{prefix}{name}", f"--{prefix}no-{name}") if hint is bool else (f"--{prefix}{name}",)


def _values(hint: Any) -> str:
    """What a value looks like.

    >>> _values(int | None), _values(tuple[str, ...]), _values(Literal["cpu", "cuda"])
    ('INT', 'TEXT ...', 'cpu|cuda')
    """
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is tuple:
        return f"{_values(get_args(hint)[0])} ..."
    several = [one for one in get_args(hint) if one is not NoneType]
    return _values(several[0]) if several else _VALUES.get(hint, "")


def _default(field: Field[Any], flags: tuple[str, ...]) -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING:
        return "required"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return flags[not value] if value else ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
