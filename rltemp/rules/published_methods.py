"""The published recipes: which rule with which divergence, coefficients and warm-up; `METHODS` names them.

Every rule of `RULES` is a method by its own name: with the coefficients of its paper where it stands in `_PUBLISHED`,
with plain distillation's otherwise. A method's options are its rule's, the coefficients, the warm-up, the divergence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rltemp.errors import BadInputError
from rltemp.kd import divergences
from rltemp.kd.method import PLAIN_CE_WEIGHT, PLAIN_KD_WEIGHT, Method, NoTeacher, Objective
from rltemp.kd.names import call_with_options, lookup, split_spec
from rltemp.kd.temperature_rule import TemperatureRule, as_rule, entry
from rltemp.rules import RULES
from rltemp.rules import published_constants as pairs
from rltemp.rules.adapter import AdaptedTeacher, learns
from rltemp.rules.constant import fixed

_COEFFICIENTS = ("ce_weight", "kd_weight", "plain_kd_weight", "warmup")
_WARMUP = 20 / 240  # of DKD's code: 20 of 240 epochs


@dataclass(frozen=True)
class PublishedMethod:
    """A factory of methods around one rule: `recipe(**options)` builds the `Method`.

    Args:
        name: In `METHODS`.
        rule: Factory of the rule, whose options are the method's too.
        summary: What the whole objective is, in a line.
        defaults: Published coefficients, divergence, and options of the rule.
        by_pair: Values that the paper tunes by pair of networks, by option; see `rltemp.rules.published_constants`.
    """

    name: str
    rule: Callable[..., TemperatureRule]
    summary: str = "the rule at plain distillation's coefficients"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    by_pair: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __call__(self, **options: Any) -> Method:
        """Build the method; a given option wins over the pair's value, and that one over the recipe's."""
        pair = options.pop("pair", None)
        constants = {} if pair is None else lookup(self.by_pair, pair, f"pair of {self.name}")
        values = {**self._defaults(), **constants, **options}
        divergence = lookup(divergences.DIVERGENCES, values.pop("divergence"), "divergence")()
        coefficients = {name: values.pop(name) for name in _COEFFICIENTS}
        # DTKD's second divergence is at its reference; Annealing-KD's second phase begins where its rule ends.
        more = {"plain_temperature": values["reference"]} if "reference" in values else {}
        more |= {"switch": values["until"]} if "until" in values else {}
        rule = entry(as_rule(self.rule(**values)), self.name, checked=not values.get("published"))
        return Method(self.name, rule, divergence=divergence, **coefficients, **more)

    @property
    def __signature__(self) -> inspect.Signature:
        """The options and their defaults, as `inspect.signature` reads them off a function."""
        named = self._defaults() | ({"pair": None} if self.by_pair else {})
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature([inspect.Parameter(name, kind, default=value) for name, value in named.items()])

    def _defaults(self) -> dict[str, Any]:
        rule = {name: parameter.default for name, parameter in inspect.signature(self.rule).parameters.items()}
        plain = (PLAIN_CE_WEIGHT, PLAIN_KD_WEIGHT, 0.0, 0.0)
        return {**rule, **dict(zip(_COEFFICIENTS, plain, strict=True)), "divergence": "kl", **self.defaults}


def none(ce_weight: float = 1.0) -> NoTeacher:
    """Train on the labels alone: what a student reaches without its teacher."""
    return NoTeacher("none", ce_weight)


def dkd(
    temperature: float = 4.0,
    target: float = 1.0,
    non_target: float | None = None,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    warmup: float = _WARMUP,
    published: bool = False,
    pair: str | None = None,
) -> Method:
    """Decoupled distillation: the target class and the others weighed apart, at one temperature.

    Zhao et al. (2022), https://arxiv.org/abs/2203.08679; `non_target` (beta) is 8 unless given or known for the pair.
    """
    beta = 8.0 if pair is None else lookup(pairs.DKD, pair, "pair of dkd")["non_target"]
    divergence = divergences.dkd(target, beta if non_target is None else non_target, published)
    return Method("dkd", entry(fixed(temperature), "fixed"), ce_weight, kd_weight, warmup=warmup, divergence=divergence)


def pesf_kd(
    temperature: float = 4.0,
    anchor: float = 1.0,
    ce_weight: float = PLAIN_CE_WEIGHT,
    kd_weight: float = PLAIN_KD_WEIGHT,
) -> Method:
    """Adapt the teacher's logits by a network that learns with the student and the labels, at one temperature.

    Only abstracts of the source were read: the network (C-32-C, ReLU, added to the logits), what it learns from and the
    coefficients are ours.

    Formula: T^2 KL(softmax(a(u) / T) || softmax(v / T)) + anchor CE(a(u), label), which the student does not see.
    Source: inferred from the abstract of Rao et al. (2022), https://arxiv.org/abs/2205.15308 (PESF-KD).
    Labels: yes
    Guard: none; the adapter begins as the teacher itself.
    """
    divergence = AdaptedTeacher(temperature, anchor)
    return Method("pesf_kd", entry(fixed(temperature), "fixed"), ce_weight, kd_weight, divergence=divergence)


_PUBLISHED: dict[str, tuple[Any, ...]] = {
    "dtkd": ("its rule at 3, plain KL at 1, CE at 1", pairs.DTKD_DEFAULT, pairs.DTKD),
    "dtkd_logsumexp": ("as dtkd", pairs.DTKD_DEFAULT, pairs.DTKD),
    "dtkd_exact": ("as dtkd", pairs.DTKD_DEFAULT, pairs.DTKD),
    "ttm": ("CE at 1, KL at beta, tuned by pair", pairs.TTM["resnet56-resnet20"], pairs.TTM),
    "wttm": ("CE at 1, KL at beta, tuned by pair", pairs.WTTM["resnet56-resnet20"], pairs.WTTM),
    "atkd": ("CE at 0.1, KL at 9", {"kd_weight": 9.0}),
    "normkd": ("CE at 0.1, KL at 0.9",),
    "lskd": ("CE at 0.1, KL at 9", {"kd_weight": 9.0}),
    "ctkd": ("CE at 0.1, KL at 0.9",),
    "idts": ("reverse KL at 1, no CE", {"ce_weight": 0.0, "kd_weight": 1.0, "divergence": "reverse_kl"}),
    "annealing": (
        "first the squared difference of logits alone, then CE alone",
        {"ce_weight": 1.0, "kd_weight": 1.0, "divergence": "mse"},
    ),
}
"""Summary, published coefficients and values by pair, as `PublishedMethod` has them."""

METHODS: dict[str, Callable[..., Objective]] = {
    "none": none,
    **{name: PublishedMethod(name, rule, *_PUBLISHED.get(name, ())) for name, rule in RULES.items()},
    "dkd": dkd,
    "pesf_kd": pesf_kd,
}


def summary(name: str) -> str:
    """What the objective of a method is, in a line.

    >>> summary("lskd")
    'CE at 0.1, KL at 9'
    """
    factory = METHODS[name]
    text = factory.summary if isinstance(factory, PublishedMethod) else inspect.getdoc(factory)
    if not text:
        raise BadInputError(f"method {name!r} has no docstring")
    return text.partition("\n")[0]


def reference_method(spec: str) -> Method:
    """Build a method of `METHODS` that has temperatures: what a policy may move around.

    A policy file names one, so nothing is imported or opened here; and one that learns would need what it learned.
    """
    name, options = split_spec(spec)
    method = call_with_options(lookup(METHODS, name, "reference"), options, spec)
    if not isinstance(method, Method) or learns(method):
        lacks = "learns them in every run anew" if isinstance(method, Method) else "has none"
        raise BadInputError(f"a policy's reference needs temperatures by a formula; {spec!r} {lacks}")
    return replace(method, name=spec)
