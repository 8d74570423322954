"""A method is the whole objective: its weights, its warm-up, its phases, and every way to name one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.data import table
from support.device_reads import DeviceReads
from torch import Tensor

from rltemp import BadInputError, Method, Signals, Temperatures, kd_loss, load_method, load_rule
from rltemp.kd.checks import unlawful
from rltemp.kd.divergences import DIVERGENCES
from rltemp.kd.losses import cross_entropy
from rltemp.kd.method import watch
from rltemp.kd.temperature_rule import as_rule
from rltemp.rules import RULES, fixed
from rltemp.rules.published_methods import METHODS, reference_method

Vector = tuple[Tensor, Tensor, Tensor]

# Vector A, temperature-methods.md section 15.1: CE, T_t T_s KL of DTKD, 16 KL at T = 4.
CE, DTKD, PLAIN = 0.49518190, 0.12662685, 0.58827813
PUBLISHED = table("kd/methods", "published")


def at(vector: Vector, progress: float) -> Signals:
    teacher, student, label = vector
    return Signals(student.float()[None], teacher.float()[None], label[None], progress)


@pytest.mark.parametrize(
    ("spec", "progress", "ce", "dtkd", "plain"),
    [
        *(
            ("dtkd", progress, 1, 3 * share, share)  # before, during and after its warm-up
            for progress, share in ((0.0, 0.0), (1 / 24, 0.5), (1 / 12, 1.0), (0.7, 1.0), (1.0, 1.0))
        ),
        ("dtkd:reference=4,ce_weight=0.5,kd_weight=2,plain_kd_weight=0.25,warmup=0", 0.0, 0.5, 2, 0.25),
        ("dtkd:reference=4,ce_weight=0.1,kd_weight=0.9,plain_kd_weight=0,warmup=0", 0.0, 0.1, 0.9, 0),
        ("fixed:4", 0.0, 0.1, 0, 0.9),
        ("none", 0.0, 1, 0, 0),
        ("none:2", 0.0, 2, 0, 0),
    ],
)
def test_an_objective_is_the_sum_worked_by_hand(
    vector_a: Vector, spec: str, progress: float, ce: float, dtkd: float, plain: float
) -> None:
    loss = load_method(spec).loss(at(vector_a, progress))
    assert loss.item() == pytest.approx(ce * CE + dtkd * DTKD + plain * PLAIN, abs=1e-5)


def test_the_plain_divergence_of_dtkd_follows_its_reference(vector_a: Vector) -> None:
    signals = at(vector_a, 1.0)
    alone = load_method("dtkd:reference=2,ce_weight=0,kd_weight=0,plain_kd_weight=1")
    torch.testing.assert_close(alone.loss(signals), kd_loss(signals, fixed(2.0)(signals)))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_method_has_the_weights_it_is_published_with(name: str, vector_a: Vector) -> None:
    ce_weight, kd_weight, plain, warmup, teacher, weight = PUBLISHED[name]
    method = load_method(name)
    assert (method.ce_weight, method.kd_weight, method.plain_kd_weight) == (ce_weight, kd_weight, plain)
    assert method.warmup == pytest.approx(warmup / 240)
    assert not method.matched
    answer = method.rule(at(vector_a, 1.0))
    for found, wanted in ((answer.teacher, teacher), (answer.weight, weight)):
        assert wanted is None or found.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(PUBLISHED) - {"none"}))
def test_a_rule_without_its_own_recipe_has_plain_distillations_weights(name: str) -> None:
    method = load_method(name)
    assert (method.ce_weight, method.kd_weight, method.plain_kd_weight, method.warmup) == (0.1, 0.9, 0.0, 0.0)
    assert set(RULES) <= set(METHODS)


@pytest.mark.parametrize(("spec", "gamma", "kd_weight"), table("kd/methods", "pairs"))
def test_a_pair_of_networks_brings_its_papers_constants_but_options_win(
    spec: str, gamma: float, kd_weight: float, vector_a: Vector
) -> None:
    method = load_method(spec)
    assert method.rule(at(vector_a, 0.5)).teacher.item() == pytest.approx(1 / gamma)
    assert (method.ce_weight, method.kd_weight) == (1.0, kd_weight)


@pytest.mark.parametrize(("pair", "weights"), table("kd/methods", "dtkd_pairs"))
def test_dtkds_two_weights_go_by_pair_and_its_warm_up_does_not(pair: str, weights: tuple[float, float]) -> None:
    method = load_method(f"dtkd:pair={pair}")
    assert (method.ce_weight, method.kd_weight, method.plain_kd_weight) == (1.0, *weights)
    assert method.warmup == pytest.approx(20 / 240)


@pytest.mark.parametrize(("spec", "non_target"), table("kd/methods", "dkd_pairs"))
def test_dkds_second_weight_goes_by_pair(spec: str, non_target: float, vector_a: Vector) -> None:
    # TCKD and NCKD of vector A at T = 4: section 15.1.
    wanted = CE + 16 * (0.03584446 + non_target * 0.00174203)
    assert load_method(spec).loss(at(vector_a, 1.0)).item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "divergence"),
    [("fixed:divergence=mse", "mse"), ("dtkd:divergence=tckd", "tckd"), ("lskd:divergence=jensen_shannon", None)],
)
def test_any_rule_takes_any_divergence_by_name(spec: str, divergence: str | None, vector_a: Vector) -> None:
    method, signals = load_method(spec), at(vector_a, 1.0)
    chosen = DIVERGENCES[divergence or "jensen_shannon"]()
    wanted = method.ce_weight * cross_entropy(signals) + method.kd_weight * kd_loss(
        signals, method.rule(signals), chosen
    )
    if method.plain_kd_weight:
        wanted = wanted + method.plain_kd_weight * kd_loss(signals, fixed(4.0)(signals), chosen)
    torch.testing.assert_close(method.loss(signals), wanted)


def test_annealing_regresses_logits_first_and_learns_labels_after(vector_a: Vector) -> None:
    teacher, student, _ = vector_a
    method = load_method("annealing")
    for stage in range(10):
        signals = at(vector_a, (stage + 0.5) / 13)
        wanted = (student - teacher * (stage + 1) / 10).square().mean().item()
        assert method.loss(signals).item() == pytest.approx(wanted, rel=1e-5)
        other = replace(signals, labels=torch.tensor([3]))
        assert torch.equal(method.loss(signals), method.loss(other))
        assert torch.equal(method.loss(signals), method.loss(replace(signals, labels=None)))
    for progress in (10 / 13, 0.9, 1.0):
        signals = at(vector_a, progress)
        assert method.loss(signals).item() == pytest.approx(CE, rel=1e-6)
        elsewhere = replace(signals, teacher_logits=-signals.teacher_logits)
        assert torch.equal(method.loss(signals), method.loss(elsewhere))
    early = load_method("annealing:until=0.2,ce_weight=2")
    assert early.loss(at(vector_a, 0.3)).item() == pytest.approx(2 * CE, rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"none", "dkd", "pesf_kd"}))
def test_without_cross_entropy_no_labels_are_needed(name: str) -> None:
    student, teacher = torch.randn(2, 6, 5)
    signals = Signals(student.requires_grad_(), teacher, progress=0.3)
    assert load_method(f"{name}:ce_weight=0").loss(signals).isfinite().all()
    if name not in ("annealing", "idts"):  # not yet, and never
        with pytest.raises(BadInputError, match="cross-entropy needs labels"):
            load_method(name).loss(signals)


@pytest.mark.parametrize(("spec", "progress"), [("dtkd:ce_weight=0", 0.0), ("annealing:ce_weight=0", 1.0)])
def test_a_step_on_which_nothing_pulls_still_goes_backward(spec: str, progress: float) -> None:
    student, teacher = torch.randn(2, 6, 5)
    signals = Signals(student.requires_grad_(), teacher, progress=progress)
    loss = load_method(spec).loss(signals)
    loss.mean().backward()
    assert loss.tolist() == [0.0] * 6
    assert (student.grad == 0).all()


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_every_method_answers_one_finite_loss_a_sample(name: str, shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *shape, 7)
    method = load_method(name)
    loss = method.loss(Signals(student, teacher, torch.zeros(shape, dtype=torch.long), 0.5))
    assert loss.shape == shape
    assert loss.isfinite().all()
    assert method.name == name


@pytest.mark.parametrize(("spec", "named"), table("kd/methods", "refused"))
def test_a_spec_that_cannot_be_is_refused_by_its_fault(spec: str, named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        load_method(spec)


def test_a_file_that_is_no_policy_is_taken_for_a_file_and_refused(tmp_path: Path) -> None:
    for name in ("model.zip", "policy.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
        with pytest.raises(BadInputError, match=f"policy file {name}"):
            load_method(str(tmp_path / name))


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own module on the path, with a rule, a method and things that are neither."""
    (tmp_path / "my_own_rules.py").write_text(
        "import torch\n"
        "from rltemp import Method, Temperatures\n"
        "def rule(signals):\n"
        "    return Temperatures(signals.full(2.0), signals.full(8.0), signals.full(16.0))\n"
        "method = Method('theirs', rule, ce_weight=0.0, kd_weight=1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_own_rules", raising=False)
    return "my_own_rules"


def test_a_rule_of_ones_own_has_plain_weights_and_a_method_its_own(own_module: str, vector_a: Vector) -> None:
    method, signals = load_method(f"{own_module}:rule"), at(vector_a, 0.0)
    divergence = kd_loss(signals, Temperatures(torch.tensor([2.0]), torch.tensor([8.0]), torch.tensor([16.0])))
    torch.testing.assert_close(method.loss(signals), 0.1 * cross_entropy(signals) + 0.9 * divergence)
    assert method.name == "my_own_rules:rule"
    assert load_rule(f"{own_module}:rule")(signals).teacher.item() == 8.0
    method = load_method(f"{own_module}:method")
    assert (method.name, method.ce_weight, method.kd_weight) == ("my_own_rules:method", 0.0, 1.0)


def test_a_reference_is_looked_up_and_never_imported(own_module: str) -> None:
    with pytest.raises(BadInputError, match="unknown reference 'my_own_rules'"):
        reference_method(f"{own_module}:rule")
    assert own_module not in sys.modules
    assert reference_method("dtkd:reference=2").plain_temperature == 2.0


@pytest.mark.parametrize("option", ["ce_weight", "kd_weight", "plain_kd_weight"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_methods_weights_are_checked_where_it_is_made(option: str, value: float) -> None:
    with pytest.raises(BadInputError, match=f"mine: {option} must be finite"):
        Method("mine", fixed(), **{option: value})


@pytest.mark.parametrize("spec", ["ctkd", "ctkd_instance", "none"])
def test_what_has_no_formula_for_its_temperatures_is_no_reference(spec: str) -> None:
    with pytest.raises(BadInputError, match="a policy's reference needs temperatures by a formula"):
        reference_method(spec)
    if spec == "none":
        with pytest.raises(BadInputError, match="none"):
            load_rule(spec)


@pytest.mark.parametrize("more", ["minimum=0,maximum=1e9", "published=true"])
def test_the_published_dtkd_formula_can_be_named(more: str) -> None:
    signals = Signals(torch.tensor([[0.1, -1.0]]), torch.tensor([[9.9, -1.0]]))
    bounded, published = (load_rule(spec)(signals) for spec in ("dtkd:reference=4", f"dtkd:reference=4,{more}"))
    assert bounded.student.item() == pytest.approx(0.5)
    assert published.student.item() == pytest.approx(0.08, rel=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_method_reads_the_device_but_a_rule_of_ones_own_reads_once(name: str) -> None:
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    signals = Signals(student.requires_grad_(), teacher, torch.zeros(6, dtype=torch.long), torch.tensor(0.3))
    method = load_method(name)
    allowed = [(method, 0)]
    if isinstance(method, Method):
        allowed.append((replace(method, rule=as_rule(lambda seen: method.rule(seen))), 1))
    for each, reads_allowed in allowed:
        with DeviceReads() as reads:
            each.loss(signals).sum().backward()
        assert reads.count == reads_allowed, reads.places


@pytest.mark.parametrize("name", ["dtkd", "annealing", "linear_schedule", "universal"])
def test_a_method_that_uses_progress_says_so_and_refuses_a_step_without_it(name: str) -> None:
    student, teacher = torch.randn(2, 6, 5)
    signals = Signals(student, teacher, torch.zeros(6, dtype=torch.long))
    assert load_method(name).uses_progress
    with pytest.raises(BadInputError, match=r"uses the progress of the run: give progress, 0 to 1, as in step / st"):
        load_method(name).loss(signals)
    for other in ("fixed:4", "none", "dtkd:warmup=0"):
        assert not load_method(other).uses_progress
        assert load_method(other).loss(signals).isfinite().all()


def test_a_matched_method_asks_its_rule_once_a_step() -> None:
    asked = []
    method = watch(load_method("matched:dtkd"), asked.append)
    student, teacher = torch.randn(2, 6, 5)
    method.loss(Signals(student.requires_grad_(), teacher, torch.zeros(6, dtype=torch.long), 0.5))
    assert len(asked) == 1


def test_the_loss_of_a_step_comes_with_its_temperatures_unchecked(vector_a: Vector) -> None:
    cold = Method("cold", lambda signals: Temperatures(*(signals.full(value) for value in (-1.0, 4.0, 16.0))))
    loss, temperatures = cold.step_loss(at(vector_a, 0.5))
    assert loss.isfinite().all()
    assert unlawful(temperatures, cold.rule.bounds).tolist() == [True]
    assert load_method("none").step_loss(at(vector_a, 0.5)).temperatures is None
    with pytest.raises(BadInputError, match=r"student temperature .*; got -1.0 for sample 0 from cold"):
        cold.loss(at(vector_a, 0.5))


@pytest.mark.parametrize("spec", ["fixed:4", "fixed:divergence=dkd,ce_weight=0", "none"])
@pytest.mark.parametrize("label", [-100, 5])
def test_a_label_that_is_no_class_is_named_with_its_place(spec: str, label: int) -> None:
    signals = Signals(*torch.randn(2, 3, 5), torch.tensor([0, 1, label]))
    with pytest.raises(BadInputError, match=rf"^label {label} at \[2\] is no class; needed: 0 to 4, and a mask"):
        load_method(spec).loss(signals)


def test_a_method_tells_what_it_is() -> None:
    assert repr(load_method("ttm:gamma=0.5")) == (
        "Method('ttm:gamma=0.5', <temperature rule ttm>, ce_weight=1, kd_weight=7)"
    )
    assert repr(load_method("none:2")) == "NoTeacher(name='none:2', ce_weight=2)"
    assert repr(load_rule("universal")) == "<temperature rule universal.safetensors>"
