"""Controls that need more than a name: those made from a recording of a policy's runs, and the greedy oracle.

Each is a maker (`rltemp.experiments.students.Maker`) that gives a method the policy's loss weights and another rule.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn import functional as F

from rltemp.experiments.recorder import Recorder
from rltemp.experiments.students import Maker
from rltemp.kd.divergences import forward_kl
from rltemp.kd.method import PLAIN_TEMPERATURE, Method, matched, uniform
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperature_rule import TemperatureRule, over_time, per_sample
from rltemp.kd.temperatures import Temperatures
from rltemp.loading import with_teacher
from rltemp.models.nested import mapped
from rltemp.models.stack import Students, logits_of
from rltemp.rules.controls import LEAST_LENGTH, gradient_lengths, with_lengths
from rltemp.rules.difficulty import random
from rltemp.training.distill import Distillation

POINTS = 200_000
"""About how many samples of a stack a recording keeps, drawn evenly from all its steps."""

GRID = tuple(PLAIN_TEMPERATURE * 5 ** (place / 2) for place in (-2, -1, 0, 1, 2))
"""What the greedy oracle chooses each network's temperature from: 0.8 to 20."""

_DRAW = random(minimum=1.0, maximum=math.e, seed=2_042)
"""Its logarithm is a uniform number for every sample."""


def recording_columns(signals: Signals, temperatures: Temperatures | None) -> dict[str, Tensor]:
    """What the controls need of a step: the temperatures' logarithms, whose mean is a geometric one, and the weight."""
    if temperatures is None:
        return {}
    student, teacher = temperatures.student.double().log(), temperatures.teacher.double().log()
    return {"student": student, "teacher": teacher, "weight": temperatures.weight.double()}


def constant(recording: Recorder) -> TemperatureRule:
    """One pair of temperatures and one weight for all samples and steps: the mean of the recording."""
    student, teacher, weight = recording.means().values()
    values = math.exp(student), math.exp(teacher), weight
    return per_sample(lambda signals: Temperatures(*map(signals.full, values)))


def scheduled(recording: Recorder) -> TemperatureRule:
    """One pair of temperatures and one weight for all samples of a step: the mean of that step in the recording."""
    steps = [(math.exp(s), math.exp(t), weight) for s, t, weight in zip(*recording.course().values(), strict=True)]
    return over_time(
        lambda signals: Temperatures(*map(signals.full, steps[round(float(signals.progress) * len(steps))]))
    )


def marginal(recording: Recorder) -> TemperatureRule:
    """Temperatures and weight of a recorded sample, drawn for each sample and step as `random` draws: by a hash."""
    student, teacher, weight = (values.flatten() for values in recording.samples().values())
    triples = torch.stack([student.exp(), teacher.exp(), weight], -1)

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        place = _DRAW(signals).student.double().log() * len(triples)
        drawn = triples.to(place.device)[place.long().clamp(0, len(triples) - 1)]
        return Temperatures(*drawn.to(signals.dtype).unbind(-1))

    return rule


def greedy(method: Method, held: bool) -> Maker:
    """At every step, for every sample, the temperatures of `GRID` that lower the probe loss most at first order.

    It looks at the labels of the probe samples in every step, which no rule may, and one step ahead, as no learner
    should: what inflates the gradient now leaves a worse student at the end. Made for small students: every step costs
    a pass over all probe samples, and students with batch normalisation or random views are seen in train mode on views
    of their own.

    Args:
        method: Gives the loss weights; the divergence is KL.
        held: Keep every sample's gradient as long as plain distillation's, so that temperatures are no weights.
    """

    def make(run: Distillation) -> Method:
        answers: dict[int, Temperatures] = {}

        @per_sample
        def rule(signals: Signals) -> Temperatures:
            if run.step not in answers:  # a matched method asks twice a step
                answers.clear()
                answers[run.step] = chosen(signals, probe_slope(run), held)
            return answers[run.step]

        return replace(method, rule=rule, divergence=forward_kl)

    return make


def probe_slope(run: Distillation) -> Tensor:
    """How fast the logits of the next batch change as the student moves up its probe loss's gradient, `[..., C]`."""
    student, dataset = run.student, run.problem.dataset
    inputs = dataset.batch(dataset.probe, torch.arange(len(dataset.probe), device=run.problem.device)).inputs
    if isinstance(student, Students):
        inputs = mapped(lambda tensor: tensor.expand(student.size, *tensor.shape), inputs)
    student.eval()
    with torch.enable_grad():
        logits = dataset.probe.kept(logits_of(student(inputs)).float(), dims=int(isinstance(student, Students)))
        labels = dataset.probe.targets.expand(logits.shape[:-1])
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / labels.shape[-1]
    student.train()
    named = dict(student.named_parameters())
    gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    place = {name: value.detach() for name, value in named.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)  # torch's own, where it is first used
        slope: Tensor = jvp(lambda at: run.signals_at(run.step, at).student_logits, (place,), (gradient,))[1]
    return slope.nan_to_num()


def chosen(signals: Signals, slope: Tensor, held: bool) -> Temperatures:
    """The pair of `GRID` with the greatest benefit for every sample, its weight T_s T_t or at plain KD's length.

    A small step down a sample's divergence moves the weights by -J'r, where r = T_t (softmax(v / T_s) - softmax(u /
    T_t)) is its gradient on the logits and J their Jacobian. The probe loss, of gradient g, then falls by g'J'r = r'
    (J g): the benefit is the product of r with the `slope`, `[..., C]`, the logits' derivative along g.
    """
    grid = torch.tensor(GRID, dtype=signals.dtype, device=slope.device)
    student, teacher = full_precision(signals.student_logits).detach(), full_precision(signals.teacher_logits)
    across = grid.view(-1, *[1] * student.dim())
    residual = (student / across).softmax(-1).unsqueeze(1) - (teacher / across).softmax(-1)  # [T_s, T_t, ..., C]
    benefit = (residual * slope).sum(-1)
    scale = 1 / residual.norm(dim=-1).clamp(min=LEAST_LENGTH) if held else across.squeeze(-1)
    best = (benefit * scale).flatten(0, 1).argmax(0)
    student_t, teacher_t = grid[best // len(grid)], grid[best % len(grid)]
    found = Temperatures(student_t, teacher_t, student_t * teacher_t)
    if not held:
        return found
    plain = gradient_lengths(signals, lambda seen: uniform(seen, PLAIN_TEMPERATURE), forward_kl)
    return with_lengths(signals, found, plain, forward_kl)


RECORDED = {"constant": constant, "schedule": scheduled, "marginal": marginal}
GREEDY = {"greedy": False, "greedy_held": True}


def makers(spec: str, method: Method, recording: Recorder) -> Mapping[str, Maker]:
    """A maker for each of these controls of the policy `spec`, at its own weights and matched, by name."""
    made = {f"{name}:{spec}": always(replace(method, rule=rule(recording))) for name, rule in RECORDED.items()}
    made |= {f"{name}:{spec}": greedy(method, held) for name, held in GREEDY.items()}
    return made | {f"matched:{name}": _matched(maker) for name, maker in made.items()}


def always(method: Method) -> Maker:
    """The maker of the same method for every run."""
    return lambda run: method


def _matched(maker: Maker) -> Maker:
    return lambda run: matched(with_teacher(maker(run), "matched"))
