"""Temperature rules, one file a family, and the published methods made of them; `RULES` at the foot names the rules.

A rule maps `Signals` to `Temperatures`. Rules do not detach: where the published code lets gradient through the
student's temperature, so does the rule; whoever wants constants calls `Temperatures.detach()`.

Inside: `constant`, `sharpness`, `standard_deviation`, `difficulty`, `confidence`, `schedules`, `curriculum` and `meta`
    are families of rules, `adapter` is a divergence that learns, `published_methods` names every method.
To extend: write a factory whose parameters are the rule's options, enter it into `RULES`, and give it one test that is
    worked by hand (docs/add-a-rule.md). `rltemp rules` shows the lines `Formula:` to `Guard:` of its docstring, and
    tests/rules/test_rules.py holds the rule to them.
Imports: `kd` and below.
Imported by: every package above, `models` and `policy` among them.
"""

from __future__ import annotations

from collections.abc import Callable

from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.rules.confidence import cist, entropy, entropy_gate, tip
from rltemp.rules.constant import fixed, ttm, wttm
from rltemp.rules.curriculum import ctkd, ctkd_instance
from rltemp.rules.difficulty import cswt, energy, idts, random
from rltemp.rules.meta import mkd
from rltemp.rules.schedules import annealing, cosine_schedule, linear_schedule, step_schedule
from rltemp.rules.sharpness import dtkd, dtkd_exact, dtkd_logsumexp
from rltemp.rules.standard_deviation import atkd, lskd, normkd

RULES: dict[str, Callable[..., TemperatureRule]] = {
    "fixed": fixed,
    "dtkd": dtkd,
    "dtkd_logsumexp": dtkd_logsumexp,
    "dtkd_exact": dtkd_exact,
    "ttm": ttm,
    "wttm": wttm,
    "atkd": atkd,
    "normkd": normkd,
    "lskd": lskd,
    "ctkd": ctkd,
    "ctkd_instance": ctkd_instance,
    "idts": idts,
    "energy": energy,
    "cswt": cswt,
    "cist": cist,
    "entropy": entropy,
    "entropy_gate": entropy_gate,
    "tip": tip,
    "annealing": annealing,
    "linear_schedule": linear_schedule,
    "cosine_schedule": cosine_schedule,
    "step_schedule": step_schedule,
    "mkd": mkd,
    "random": random,
}
