"""The served models answer what the rule or policy answers in process, and name what they cannot answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.policies import random_policy

from rltemp import ArtifactRefusedError, BadInputError, Signals, load_rule
from rltemp.kd.temperatures import OUTPUTS
from rltemp.loading import SHIPPED
from rltemp.policy.features import featurize
from rltemp.policy.policy_file import forward, read_policy
from rltemp.policy.rule import Policy
from rltemp.rules.published_methods import reference_method
from rltemp.service.refusals import Refusal
from rltemp.service.repository import KEPT, Repository, rule_names
from rltemp.service.served_models import CONSTANT_REFERENCES, PolicyModel
from rltemp.service.strict_values import Array

REPOSITORY = Repository()

NO_MODELS = """
dtdk Fixed none ctkd fixed:-1 fixed:nan fixed:1e999 fixed:temperature fixed:a=1 fixed:4,4 fixed:temperature=1=2
math:tau os:system a/b ../universal rltemp/policies/universal.safetensors matched:dtkd universal:1
dtkd:pair=x dtkd:divergence=x random:seed=-1
"""


def arrays(*leading: int, classes: int = 7, dtype: str = "<f4", seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "student_logits": random.standard_normal((*leading, classes)).astype(dtype),
        "teacher_logits": (3 * random.standard_normal((*leading, classes))).astype(dtype),
        "labels": random.integers(0, classes, leading),
        "progress": np.array([0.25], "<f4"),
    }


def signals(inputs: dict[str, Array]) -> Signals:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    progress = float(tensors.pop("progress"))
    return Signals(**tensors, progress=progress)


def policy_model(path: Path, *hidden: int, **options: Any) -> PolicyModel:
    return PolicyModel("p", random_policy(path / "p.safetensors", *hidden, **options).read_bytes())


def refusal(model: Any, inputs: dict[str, Array], *outputs: str) -> str:
    with pytest.raises(Refusal) as found:
        model.infer(inputs, outputs or None)
    assert found.value.status == 400
    return found.value.message


@pytest.mark.parametrize("name", [*rule_names(), "universal", "dtkd:reference=2", "fixed:3"])
@pytest.mark.parametrize("shape", [(6,), (2, 3), ()])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_logits_are_answered_as_in_process(name: str, shape: tuple[int, ...], dtype: str) -> None:
    inputs = arrays(*shape, dtype=dtype)
    found = REPOSITORY.find(name).infer(inputs, None).outputs
    expected = load_rule(name)(signals(inputs))
    assert list(found) == list(OUTPUTS)
    for output, values in expected.outputs().items():
        assert found[output].dtype == np.float32
        np.testing.assert_allclose(found[output], values.float().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [*rule_names(), "universal"])
def test_no_samples_have_no_temperatures(name: str) -> None:
    for shape in ((0,), (2, 0)):
        found = REPOSITORY.find(name).infer(arrays(*shape), None).outputs
        assert [values.shape for values in found.values()] == [shape] * 3


@pytest.mark.parametrize("reference", ["fixed:4", "ttm", "dkd"])
@pytest.mark.parametrize(("hidden", "activation"), [((), "tanh"), ((16,), "relu"), ((8, 8, 4), "tanh")])
@pytest.mark.parametrize("action", [{}, {"weight_ratio": 3.0}])
def test_features_are_answered_as_in_process(tmp_path, reference, hidden, activation, action) -> None:
    model = policy_model(tmp_path, *hidden, reference=reference, activation=activation, gain=2.0, **action)
    inputs = arrays(64)
    seen = signals(inputs)
    names = [feature.name for feature in model.manifest.features]
    sent = {"features": featurize(seen, names).numpy()}
    answer = model.infer(sent, (*OUTPUTS, "action"))
    expected = Policy.load(tmp_path / "p.safetensors")(seen)
    for name, values in expected.outputs().items():
        np.testing.assert_allclose(answer.outputs[name], values.numpy(), rtol=1e-5, atol=1e-6)
    file = read_policy(tmp_path / "p.safetensors")
    raw = forward(file.weights, file.manifest.activation, (torch.from_numpy(sent["features"]) - 0.1) / 0.7)
    np.testing.assert_allclose(answer.outputs["action"], raw.clamp(-1, 1).numpy(), rtol=1e-5, atol=1e-6)
    assert answer.clamped == int((raw.abs() > 1).sum()) > 0


def test_a_policy_fades_at_the_service_as_in_process(tmp_path: Path) -> None:
    model = policy_model(tmp_path, 8, gain=3.0, seen=(-1.0, 1.0), balanced=True)
    inputs = arrays(64)
    expected = Policy.load(tmp_path / "p.safetensors")(signals(inputs))
    assert expected.guarded is not None
    assert 0 < int(expected.guarded.sum()) < 64
    answer = model.infer(inputs, None).outputs
    for name, values in expected.outputs().items():
        np.testing.assert_allclose(answer[name], values.numpy(), rtol=1e-5, atol=1e-6)


def test_weights_from_features_lack_the_balance_that_logits_give() -> None:
    model = REPOSITORY.find("universal")
    assert isinstance(model, PolicyModel)
    assert model.manifest.action.balanced
    inputs = arrays(32)
    seen = signals(inputs)
    sent = {"features": featurize(seen, [feature.name for feature in model.manifest.features]).numpy()}
    answer = model.infer(sent, (*OUTPUTS, "action")).outputs
    policy = Policy.of(read_policy(SHIPPED["universal"]), "universal")
    reference = policy.reference.rule
    action = torch.from_numpy(answer["action"])
    plain = replace(policy.scale, balanced=False).apply(seen, reference(seen), action)
    np.testing.assert_allclose(answer["weight"], plain.weight.numpy(), rtol=1e-5)
    # What rltemp's own client does beside its logits gives the numbers of a run without a service.
    whole = policy.scale.apply(seen, reference(seen), action)
    expected = load_rule("universal")(seen)
    np.testing.assert_allclose(whole.weight.numpy(), expected.weight.numpy(), rtol=1e-5)
    assert np.abs(answer["weight"] / expected.weight.numpy() - 1).max() > 0.05
    np.testing.assert_allclose(model.infer(inputs, None).outputs["weight"], expected.weight.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", rule_names())
def test_a_reference_is_taken_for_constant_only_where_it_is(name: str) -> None:
    rule = reference_method(name).rule
    answers = []
    for seed, progress in ((0, 0.1), (1, 0.6)):
        found = rule(replace(signals(arrays(50, seed=seed)), progress=progress))
        answers.append(torch.stack([found.student, found.teacher, found.weight], -1))
    same = torch.cat(answers)
    constant = bool((same == same[0]).all())
    if name in CONSTANT_REFERENCES:
        assert constant
    else:
        assert not constant or name == "step_schedule", "list it, so that its policies need no reference"


def test_a_policy_around_a_rule_of_the_logits_asks_for_them(tmp_path: Path) -> None:
    model = policy_model(tmp_path, reference="dtkd")
    features = {"features": np.zeros((3, 8), "<f4")}
    assert "moves around dtkd: send logits, or ask for action alone" in refusal(model, features)
    assert model.infer(features, ("action",)).outputs["action"].shape == (3, 2)


@pytest.mark.parametrize("name", ["universal", "linear_schedule", "fixed:4"])
@pytest.mark.parametrize("samples", [2, 0])
def test_a_missing_progress_is_refused_where_the_answer_uses_it(name: str, samples: int) -> None:
    inputs = arrays(samples)
    del inputs["progress"]
    model = REPOSITORY.find(name)
    if name == "fixed:4":
        assert (model.infer(inputs, None).outputs["weight"] == 16).all()
        return
    with pytest.raises(Refusal, match=f"^{name} uses the progress of the run: send progress") as found:
        model.infer(inputs, None)
    assert found.value.status == 422


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"features": np.zeros((2, 7))}, "features have shape [2, 7]; needed: [samples, 8]"),
        ({"features": np.zeros(8)}, "features have shape [8]; needed: [samples, 8]"),
        ({"features": np.full((2, 8), 11.0)}, "features[0][0] is 11; features are clipped to [-10, 10]"),
        ({"features": np.full((2, 8), 1e300)}, "features[0][0] is 1e+300"),
        ({"features": np.zeros((2, 8)), **arrays(2)}, "send features, or logits"),
    ],
)
def test_features_that_cannot_be_answered_are_named(inputs: dict[str, Array], message: str) -> None:
    assert message in refusal(REPOSITORY.find("universal@1"), inputs)


def test_logits_without_a_finite_answer_are_refused_with_the_sample() -> None:
    inputs = arrays(3)
    inputs["teacher_logits"][1] = np.linspace(-3e38, 3e38, 7)
    assert "sample[1] has no " in refusal(REPOSITORY.find("normkd:temperature=1e18"), inputs)


def test_an_output_that_a_model_does_not_have_is_named() -> None:
    assert "unknown output 'action'; this model has" in refusal(REPOSITORY.find("dtkd"), arrays(2), "action")


def test_only_what_is_asked_for_is_answered_in_that_order() -> None:
    outputs = REPOSITORY.find("universal").infer(arrays(2), ("action", "weight")).outputs
    assert list(outputs) == ["action", "weight"]
    assert outputs["action"].shape == (2, 3)


@pytest.mark.parametrize("name", ["", "fixed:" + "9" * 300, "café", *NO_MODELS.split()])
def test_a_model_that_nobody_knows_is_none(name: str) -> None:
    with pytest.raises(Refusal) as found:
        REPOSITORY.find(name)
    assert (found.value.status, found.value.reason) == (404, "unknown_model")


def test_the_newest_version_is_served_and_the_last_few_stay(tmp_path: Path) -> None:
    repository = Repository({"mine": str(random_policy(tmp_path / "first.safetensors"))})
    files = [random_policy(tmp_path / f"{seed}.safetensors", seed=seed).read_bytes() for seed in range(2, 8)]
    for version, data in enumerate(files, 2):
        repository.publish("mine", data, str(version))
    assert repository.find("mine").version == "7"
    assert [model.version for model in repository.versions("mine")] == ["4", "5", "6", "7"]
    assert len(repository.versions("mine")) == KEPT
    assert repository.find("mine", "5").data == files[3]  # type: ignore[union-attr]
    with pytest.raises(Refusal, match="model 'mine' has no version '1'; it has 4, 5, 6, 7"):
        repository.find("mine", "1")


def test_what_is_refused_leaves_what_is_served(tmp_path: Path) -> None:
    repository = Repository({"mine": str(random_policy(tmp_path / "p.safetensors"))})
    data = (tmp_path / "p.safetensors").read_bytes()
    with pytest.raises(ArtifactRefusedError, match="SHA-256 mismatch"):
        repository.publish("mine", data[:-1] + bytes([data[-1] ^ 1]), "2")
    with pytest.raises(BadInputError, match="version 1 of 'mine' is served already"):
        repository.publish("mine", data, "1")
    with pytest.raises(BadInputError, match="a version is a number"):
        repository.publish("mine", data, "latest")
    assert [model.version for model in repository.versions("mine")] == ["1"]


def test_an_answer_is_whole_from_one_version_while_others_are_published(tmp_path: Path) -> None:
    files = [random_policy(tmp_path / f"{seed}.safetensors", seed=seed).read_bytes() for seed in range(20)]
    features = {"features": np.full((1, 8), 0.3, "<f4")}
    expected = {}
    for version, data in enumerate(files, 1):
        expected[str(version)] = PolicyModel("mine", data, str(version)).infer(features, None).outputs["weight"].item()
    repository = Repository()
    repository.publish("mine", files[0], "1")

    def publish() -> None:
        for version, data in enumerate(files[1:], 2):
            repository.publish("mine", data, str(version))

    writer = threading.Thread(target=publish)
    writer.start()
    seen = set()
    while writer.is_alive() or "20" not in seen:
        model = repository.find("mine")
        seen.add(model.version)
        assert model.infer(features, None).outputs["weight"].item() == expected[model.version]
    writer.join()
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"dtkd": "universal"}, "is a closed-form rule's name"),
        ({"a/b": "universal"}, "a model's name is"),
        ({"mine": "nowhere.safetensors"}, "does not exist"),
        ({"mine": "universal@sha256:" + 64 * "0"}, "SHA-256 mismatch"),
    ],
)
def test_policies_that_cannot_be_served_are_named_at_the_start(models: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Repository(models)
