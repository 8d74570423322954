"""A method is the whole objective: its weights, its warm-up, and every way to name one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rltemp import BadInputError, Method, Signals, Temperatures, kd_loss, load_method, load_rule
from rltemp.losses import cross_entropy
from rltemp.methods import reference_method
from rltemp.recipes import METHODS
from rltemp.rules import fixed

Vector = tuple[Tensor, Tensor, Tensor]

# Vector A, temperature-methods.md section 15.1: CE, T_t T_s KL of DTKD, 16 KL at T = 4.
CE, DTKD, PLAIN = 0.49518190, 0.12662685, 0.58827813


def at(vector: Vector, progress: float) -> Signals:
    teacher, student, label = vector
    return Signals(student.float()[None], teacher.float()[None], label[None], progress)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (1 / 24, 0.5), (1 / 12, 1.0), (0.7, 1.0), (1.0, 1.0)])
def test_dtkds_objective_by_hand_before_during_and_after_its_warm_up(
    vector_a: Vector, progress: float, share: float
) -> None:
    loss = load_method("dtkd").loss(at(vector_a, progress))
    assert loss.item() == pytest.approx(CE + share * (3 * DTKD + PLAIN), abs=1e-5)


def test_every_weight_of_dtkd_can_be_given_by_name(vector_a: Vector) -> None:
    method = load_method("dtkd:reference=4,ce_weight=0.5,kd_weight=2,plain_kd_weight=0.25,warmup=0")
    assert method.loss(at(vector_a, 0.0)).item() == pytest.approx(0.5 * CE + 2 * DTKD + 0.25 * PLAIN, abs=1e-5)


def test_dtkds_rule_at_the_usual_weights_by_hand(vector_a: Vector) -> None:
    method = load_method("dtkd:reference=4,ce_weight=0.1,kd_weight=0.9,plain_kd_weight=0,warmup=0")
    assert method.loss(at(vector_a, 0.0)).item() == pytest.approx(0.1 * CE + 0.9 * DTKD, abs=1e-5)


def test_the_plain_divergence_of_dtkd_follows_its_reference(vector_a: Vector) -> None:
    signals = at(vector_a, 1.0)
    alone = load_method("dtkd:reference=2,ce_weight=0,kd_weight=0,plain_kd_weight=1")
    torch.testing.assert_close(alone.loss(signals), kd_loss(signals, fixed(2.0)(signals)))


def test_fixed_and_none_by_hand(vector_a: Vector) -> None:
    signals = at(vector_a, 0.0)
    assert load_method("fixed:4").loss(signals).item() == pytest.approx(0.1 * CE + 0.9 * PLAIN, abs=1e-5)
    assert load_method("none").loss(signals).item() == pytest.approx(CE, abs=1e-6)
    assert load_method("none:2").loss(signals).item() == pytest.approx(2 * CE, abs=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_every_method_answers_one_finite_loss_a_sample(name: str, shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *shape, 7)
    method = load_method(name)
    loss = method.loss(Signals(student, teacher, torch.zeros(shape, dtype=torch.long), 0.5))
    assert loss.shape == shape
    assert loss.isfinite().all()
    assert method.name == name


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("dtdk", "unknown rule 'dtdk': did you mean 'dtkd'"),
        ("fixed:temprature=3", "did you mean 'temperature'"),
        ("fixed:0", "fixed: temperature must be finite and above 0; got 0"),
        ("fixed:-1", "got -1"),
        ("fixed:NaN", "got nan"),
        ("fixed:warm", "got 'warm'"),
        ("fixed:4,5", "cannot read '5'"),
        ("dtkd:kd_weight=-1", "kd_weight must be finite and above 0; got -1"),
        ("dtkd:ce_weight=Infinity", "ce_weight must be finite"),
        ("dtkd:warmup=1.5", "warmup is a fraction of the run"),
        ("no_such_module:rule", "cannot import 'no_such_module:rule'"),
        ("runs/none/policy.safetensors", "does not exist"),
    ],
)
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
        "def cold(signals):\n"
        "    student = signals.full(4.0)\n"
        "    student[1] = VALUE\n"
        "    return Temperatures(student, signals.full(4.0), signals.full(16.0))\n"
        "VALUE = 0.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_own_rules", raising=False)
    return "my_own_rules"


def test_a_rule_of_ones_own_is_used_at_plain_distillations_weights(own_module: str, vector_a: Vector) -> None:
    method, signals = load_method(f"{own_module}:rule"), at(vector_a, 0.0)
    divergence = kd_loss(signals, Temperatures(torch.tensor([2.0]), torch.tensor([8.0]), torch.tensor([16.0])))
    torch.testing.assert_close(method.loss(signals), 0.1 * cross_entropy(signals) + 0.9 * divergence)
    assert method.name == "my_own_rules:rule"
    assert load_rule(f"{own_module}:rule")(signals).teacher.item() == 8.0


def test_a_method_of_ones_own_keeps_its_weights_and_takes_the_name_it_was_asked_for_by(
    own_module: str,
) -> None:
    method = load_method(f"{own_module}:method")
    assert (method.name, method.ce_weight, method.kd_weight) == ("my_own_rules:method", 0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, -1.5, float("nan"), float("inf")])
def test_a_rule_that_answers_no_temperature_is_stopped_with_value_sample_and_source(
    own_module: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = load_method(f"{own_module}:cold")
    monkeypatch.setattr(sys.modules[own_module], "VALUE", value)
    signals = Signals(torch.randn(3, 4), torch.randn(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(BadInputError, match=rf"student .* got {value} for sample 1 from {own_module}:cold"):
        method.loss(signals)


def test_what_trains_without_a_teacher_has_no_temperature_rule() -> None:
    for load in (load_rule, reference_method):
        with pytest.raises(BadInputError, match="none"):
            load("none")


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


def test_a_misspelt_rule_with_options_is_answered_with_the_closest_match() -> None:
    with pytest.raises(BadInputError, match="did you mean 'fixed'"):
        load_method("fixd:4")


def test_a_module_attribute_that_is_no_rule_is_refused() -> None:
    with pytest.raises(BadInputError, match="is a float; needed: a Method, or a rule"):
        load_method("math:tau")


def test_the_published_dtkd_formula_can_be_named() -> None:
    signals = Signals(torch.tensor([[0.1, -1.0]]), torch.tensor([[9.9, -1.0]]))
    bounded, published = (load_rule(f"dtkd:reference=4{more}")(signals) for more in ("", ",minimum=0,maximum=1e9"))
    assert bounded.student.item() == pytest.approx(0.5)
    assert published.student.item() == pytest.approx(0.08, rel=1e-5)
