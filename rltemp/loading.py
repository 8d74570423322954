"""From a name to a method or a rule: of the tables, of a policy file, or of the user's own module."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from rltemp.errors import BadInputError
from rltemp.io.own_code import import_attribute, is_own
from rltemp.kd.method import Method, Objective
from rltemp.kd.names import call_with_options, closest, lookup, spelled, split_spec
from rltemp.kd.temperature_rule import FunctionRule, TemperatureRule, as_rule
from rltemp.rules.controls import WRAPPERS
from rltemp.rules.published_methods import METHODS

PIN = "@sha256:"
"""Between a policy file's name and the SHA-256 that the file must have."""

_POLICIES = Path(__file__).parent / "policies"
SHIPPED = {"universal": _POLICIES / "universal.safetensors", "universal@1": _POLICIES / "universal-1.safetensors"}
"""Policies that come with the package. docs/universal.md says how `universal` was made; `universal@1` had this name
before it."""


def load_method(spec: str | Path) -> Objective:
    """Build the method that `spec` names.

    Args:
        spec: `name`, `name:value` or `name:key=value,...` of `rltemp.rules.published_methods.METHODS`; the path of a
            policy file or the name of a shipped one (`universal`), which bring the objective that they were trained
            with, pinned as in `policy.safetensors@sha256:9f86d0...` where no other file will do; `module:attribute`, a
            `Method` or a rule (at plain distillation's coefficients); or any of these after `matched:` or the name of
            a control (`rltemp.rules.controls`). A path may be a `Path`.

    Raises:
        BadInputError: For a name nobody knows, with the closest match, and for an option that cannot be.
        ArtifactRefusedError: For a policy file that fails its checks or is not the pinned one.

    >>> load_method("dtkd:reference=2")
    Method('dtkd:reference=2', <temperature rule dtkd>, ce_weight=1, kd_weight=3, plain_kd_weight=1, warmup=0.08333)
    >>> load_method("none")
    NoTeacher(name='none', ce_weight=1.0)
    """
    spec = spelled(spec, "method")
    name, options = split_spec(spec)
    if name in METHODS:
        return replace(call_with_options(METHODS[name], options, spec), name=spec)
    if name in WRAPPERS and options:
        return replace(WRAPPERS[name](with_teacher(load_method(options), name)), name=spec)
    if is_policy(spec):
        from rltemp.policy.rule import Policy  # the reader of strangers' files, loaded by those who need it

        return Policy.load(*named_policy(spec)).method(spec)
    if is_own(spec) or _of_a_module(spec):
        found = import_attribute(spec)
        if not callable(found) and not isinstance(found, Objective):
            raise BadInputError(
                f"{spec!r} is a {type(found).__name__}; needed: a Method, or a rule to call with Signals"
            )
        return replace(found, name=spec) if isinstance(found, Objective) else Method(spec, as_rule(found))
    lookup(dict.fromkeys([*METHODS, *WRAPPERS, *SHIPPED]), name, "rule")
    if name in SHIPPED:
        raise BadInputError(f"{spec!r}: the policy {name} takes no options, its file holds them. Give {name} alone")
    raise BadInputError(f"{spec!r} needs a method behind it, as in {name}:dtkd")


def load_rule(spec: str | Path) -> TemperatureRule:
    """Build the temperature rule that `spec` names: the rule of `load_method(spec)`, without its coefficients.

    A mask among the signals is kept: T = 1 and weight 0 stand where there is no sample.

    >>> import torch
    >>> from rltemp import Signals
    >>> signals = Signals(torch.tensor([[2.0, 1.0, 0.5, -1.0]]), torch.tensor([[4.0, 1.0, 0.0, -1.0]]))
    >>> load_rule("dtkd:reference=4")(signals).teacher
    tensor([5.3333])
    >>> load_rule("fixed:4")
    <temperature rule fixed:4>
    """
    method = with_teacher(load_method(spec), "a temperature rule")
    return replace(method.rule, name=method.name) if isinstance(method.rule, FunctionRule) else method.rule


def with_teacher(objective: Objective, needed_by: str) -> Method:
    """Return what has temperatures as a `Method`, and refuse training without a teacher in the name of who needs them.

    >>> with_teacher(load_method("none"), "matched")
    Traceback (most recent call last):
    rltemp.errors.BadInputError: matched needs temperatures, and 'none' trains without a teacher
    """
    if not isinstance(objective, Method):
        raise BadInputError(f"{needed_by} needs temperatures, and {objective.name!r} trains without a teacher")
    return objective


def _of_a_module(spec: str) -> bool:
    """Tell whether `spec` is meant as something to import, there or not; `fixd:4` and `dtdk:published` are not."""
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute.isidentifier():
        return False
    misspelt = closest(place, [*METHODS, *WRAPPERS, *SHIPPED], cutoff=0.7)
    return misspelt is None or find_spec(place.partition(".")[0]) is not None


def is_policy(spec: str) -> bool:
    """Tell whether `spec` names a policy: a shipped one, or a file: it has a suffix we know, a slash, or it exists."""
    name = spec.partition(PIN)[0]
    if is_own(name):
        return False
    suffixed = name.endswith((".safetensors", ".zip", ".pt", ".pth", ".pkl"))
    return name in SHIPPED or suffixed or "/" in name or os.path.isfile(name)


def named_policy(spec: str) -> tuple[Path, str | None]:
    """The policy file that `spec` names, and the SHA-256 that it pins.

    >>> named_policy("runs/p/policy.safetensors@sha256:" + 64 * "0")[1] == 64 * "0"
    True
    """
    name, pinned, sha256 = spec.partition(PIN)
    if pinned and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise BadInputError(f"{spec!r} pins no SHA-256; needed: its 64 digits, as `rltemp policy show` prints them")
    if not is_policy(name) and not Path(name).exists():
        lookup(SHIPPED, name, "policy", f"{', '.join(SHIPPED)}, and the path of a policy file")
    return SHIPPED.get(name, Path(name).expanduser()), sha256 or None


def imports_code(spec: str) -> bool:
    """Tell whether `load_method(spec)` imports a module, which runs it: only what its user typed may do that."""
    name, options = split_spec(spec)
    if name in WRAPPERS and options:
        return imports_code(options)
    return name not in METHODS and (is_own(spec) or (bool(options) and not is_policy(spec)))
