"""A method is what a training step minimises: a temperature rule, loss weights and a warm-up; `METHODS` names them.

    loss = ce_weight * CE + min(progress / warmup, 1) * (kd_weight * KD(rule) + plain_kd_weight * KD(fixed))

Published methods differ by a factor of ten in these weights, and a weight acts as a learning rate: so they are options
by name (`dtkd:reference=2,kd_weight=0.9,plain_kd_weight=0,ce_weight=0.1,warmup=0` is DTKD's rule at the usual weights).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from rltemp import rules
from rltemp.errors import BadInputError
from rltemp.losses import cross_entropy, kd_loss
from rltemp.names import call_with_options, import_attribute, lookup, split_spec
from rltemp.types import Signals, TemperatureRule


@dataclass(frozen=True)
class Method:
    """What one distillation run minimises.

    Args:
        name: As it was asked for; shown in tables and error messages.
        rule: Temperatures per sample, or None for training without a teacher.
        ce_weight: Weight of the cross-entropy with the labels, >= 0.
        kd_weight: Weight of the divergence under `rule`, >= 0.
        plain_kd_weight: Weight of a second divergence at one fixed temperature (DTKD's objective has one), >= 0.
        plain_temperature: That temperature, > 0.
        warmup: Fraction of the run over which both divergences grow linearly from 0, 0..1.
    """

    name: str
    rule: TemperatureRule | None
    ce_weight: float = 0.1
    kd_weight: float = 0.9
    plain_kd_weight: float = 0.0
    plain_temperature: float = 4.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for option in ("ce_weight", "kd_weight", "plain_kd_weight"):
            value = getattr(self, option)
            if value != 0:
                rules.positive(value, self.name, option)
        if not 0 <= self.warmup <= 1:
            raise BadInputError(f"{self.name}: warmup is a fraction of the run, 0 to 1; got {self.warmup}")

    def loss(self, signals: Signals) -> Tensor:
        """Return the whole objective for every sample, `[...]`, in nats.

        Raises:
            BadInputError: Where the rule answers a temperature that is not positive and finite.
        """
        loss = self.ce_weight * cross_entropy(signals)
        if self.rule is None:
            return loss
        temperatures = self.rule(signals)
        rules.check_temperatures(temperatures, self.name)
        soft = self.kd_weight * kd_loss(signals, temperatures)
        if self.plain_kd_weight:
            soft = soft + self.plain_kd_weight * kd_loss(signals, rules.fixed(self.plain_temperature)(signals))
        return loss + (min(signals.progress / self.warmup, 1.0) if self.warmup else 1.0) * soft


def none(ce_weight: float = 1.0) -> Method:
    """Train on the labels alone: what a student reaches without its teacher."""
    return Method("none", rule=None, ce_weight=ce_weight)


def fixed(temperature: float = 4.0, ce_weight: float = 0.1, kd_weight: float = 0.9) -> Method:
    """Plain distillation, with the weights that CIFAR-100 recipes use (0.1 and 0.9)."""
    return Method("fixed", rules.fixed(temperature), ce_weight, kd_weight)


def dtkd(
    reference: float = 4.0,
    ce_weight: float = 1.0,
    kd_weight: float = 3.0,
    plain_kd_weight: float = 1.0,
    warmup: float = 20 / 240,
    minimum: float = 0.5,
    maximum: float = 20.0,
) -> Method:
    """DTKD's whole published objective: its rule, an extra plain divergence at the reference, and a warm-up.

    Wei and Bai (2024), https://arxiv.org/abs/2404.12711, with the default weights of the authors' code (gamma 1,
    alpha 3, beta 1; per-pair values there are alpha 1 to 3, beta 0.5 to 2). The code warms up over 20 of 240 epochs.
    """
    rule = rules.dtkd(reference, minimum, maximum)
    return Method("dtkd", rule, ce_weight, kd_weight, plain_kd_weight, float(reference), warmup)


METHODS: dict[str, Callable[..., Method]] = {
    "none": none,
    "fixed": fixed,
    "dtkd": dtkd,
}


def load_method(spec: str) -> Method:
    """Build the method that `spec` names.

    Args:
        spec: `name`, `name:value` or `name:key=value,...` of `METHODS`; the path of a policy file, which brings the
            objective that it was trained with; or `module:attribute`, a `Method` or a rule (at plain KD's weights).

    Raises:
        BadInputError: For a name nobody knows, with the closest match, and for an option that cannot be.
        ArtifactRefusedError: For a policy file that fails its checks.

    >>> load_method("dtkd:reference=2").plain_temperature
    2.0
    """
    name, options = split_spec(spec)
    if name in METHODS:
        return replace(call_with_options(METHODS[name], options, spec), name=spec)
    if is_file_name(spec):
        from rltemp.policy import Policy  # the reader of strangers' files, loaded by those who need it

        return Policy.load(Path(spec)).method(spec)
    if options and not _misspelt(name):
        found = import_attribute(spec)
        if not callable(found) and not isinstance(found, Method):
            raise BadInputError(
                f"{spec!r} is a {type(found).__name__}; needed: a Method, or a rule to call with Signals"
            )
        return replace(found, name=spec) if isinstance(found, Method) else Method(spec, found)
    return lookup(METHODS, name, "rule")()


def load_rule(spec: str) -> TemperatureRule:
    """Build the temperature rule that `spec` names: the rule of `load_method(spec)`, without its loss weights.

    >>> import torch
    >>> from rltemp import Signals
    >>> signals = Signals(torch.tensor([[2.0, 1.0, 0.5, -1.0]]), torch.tensor([[4.0, 1.0, 0.0, -1.0]]))
    >>> load_rule("dtkd:reference=4")(signals).teacher
    tensor([5.3333])
    """
    rule = load_method(spec).rule
    if rule is None:
        raise BadInputError(f"{spec!r} trains without a teacher and has no temperature rule")
    return rule


def reference_method(spec: str) -> Method:
    """Build a method of `METHODS` that has temperatures: what a policy may move around.

    A policy file names one, so nothing is imported or opened here.
    """
    name, options = split_spec(spec)
    method = call_with_options(lookup(METHODS, name, "reference"), options, spec)
    if method.rule is None:
        raise BadInputError(f"a policy's reference needs temperatures; {spec!r} has none")
    return replace(method, name=spec)


def _misspelt(name: str) -> bool:
    """Tell whether `name` is nearly a method's and no module's: `fixd:4` is not meant as something to import."""
    module = name.partition(".")[0]
    return bool(get_close_matches(name, METHODS)) and find_spec(module) is None


def is_file_name(spec: str) -> bool:
    """Tell whether `spec` names a policy file rather than a rule: it has a suffix we know, a slash, or it exists."""
    return spec.endswith((".safetensors", ".zip", ".pt", ".pth", ".pkl")) or "/" in spec or Path(spec).is_file()
