"""`policy import` and `policy show`: from what Stable-Baselines3 saved to a policy file, by weights alone."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from support import hostile
from support.policies import random_policy
from support.policy_files import forge, manifest_of
from support.processes import code
from torch import nn

from rltemp import ArtifactRefusedError, BadInputError, load_method, load_rule
from rltemp.data.problem import Problem
from rltemp.envs.vector import DistillVecEnv
from rltemp.loading import SHIPPED
from rltemp.policy.features import DEFAULT_FEATURES
from rltemp.policy.policy_file import forward, read_policy
from rltemp.policy.rule import KNOWN_FEATURES
from rltemp.policy.sb3_archive import read_actor, read_architecture

WIDTHS = (8, 64, 64, 2)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """What Stable-Baselines3 saves of such a policy, with a payload that leaves a marker."""
    path = tmp_path / "model.zip"
    path.write_bytes(hostile.sb3_archive(tmp_path / "MARKER", hostile.sb3_weights(*WIDTHS)))
    return path


@pytest.mark.parametrize(
    ("arch", "activation", "said"),
    [("64,64", "tanh", True), ("16", "relu", False), ("8,4", "tanh", False), ("none", "tanh", False)],
)
def test_an_imported_policy_acts_as_stable_baselines3_does(
    arch: str, activation: str, said: bool, toy: Problem, tmp_path: Path
) -> None:
    env = DistillVecEnv(toy, students=2)
    hidden = [] if arch == "none" else [int(width) for width in arch.split(",")]
    functions = {"tanh": nn.Tanh, "relu": nn.ReLU}
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=4,
        batch_size=100,
        n_epochs=1,
        learning_rate=0.01,
        policy_kwargs={"net_arch": {"pi": hidden, "vf": [9]}, "activation_fn": functions[activation]},
        device="cpu",
        seed=0,
    )
    model.learn(4 * env.num_envs)
    model.save(tmp_path / "model.zip")
    out = tmp_path / "policy.safetensors"
    words = ("--arch", arch, "--activation", activation) if said else ()
    assert code("policy", "import", tmp_path / "model.zip", *words, "--out", out, "--reference", "fixed:3") == 0
    policy = read_policy(out, KNOWN_FEATURES)
    observation = np.random.default_rng(0).normal(0, 2, (500, len(DEFAULT_FEATURES))).astype(np.float32)
    theirs, _ = model.predict(observation, deterministic=True)
    ours = forward(policy.weights, activation, torch.from_numpy(observation)).clamp(-1, 1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-5)
    assert np.ptp(theirs) > 0.01
    assert load_method(str(out)).name == str(out)
    assert policy.manifest.reference == "fixed:3"


def saved_with(activation: str) -> bytes:
    """The readable part of what SB3 writes about a policy's options."""
    return json.dumps({"policy_kwargs": {":type:": "<class 'dict'>", "activation_fn": activation}}).encode()


RELU, ELU = (f"<class 'torch.nn.modules.activation.{name}'>" for name in ("ReLU", "ELU"))


@pytest.mark.parametrize(
    ("data", "words", "said"),
    [
        (saved_with(RELU), ("--activation", "tanh"), "has relu between its layers, not tanh: leave it out"),
        (saved_with(ELU), (), "has elu between its layers; a policy file has tanh or relu"),
        (saved_with("<class 'mine.Own'>"), (), "does not say what is between its layers; give --activation"),
        (b"[" * 100_000, (), "does not say what is between its layers; give --activation"),
        (b"\x80\x04 no pickle at all", (), "does not say what is between its layers; give --activation"),
    ],
)
def test_an_activation_that_is_another_or_unknown_is_one_line(
    data: bytes, words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = tmp_path / "model.zip", tmp_path / "p.safetensors"
    archive.write_bytes(hostile.sb3_archive(tmp_path / "MARKER", hostile.sb3_weights(*WIDTHS), data=data))
    assert code("policy", "import", archive, *words, "--out", out) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert not out.exists()


def test_normalisation_that_is_given_becomes_the_features_own(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(hostile.sb3_archive(tmp_path / "MARKER", hostile.sb3_weights(2, 4, 2)))
    words = ("--features", "progress", "agreement", "--mean", "0.5", "0.1", "--std", "0.25", "2", "--arch", "4")
    assert code("policy", "import", tmp_path / "model.zip", *words, "--out", tmp_path / "p.safetensors") == 0
    features = read_policy(tmp_path / "p.safetensors").manifest.features
    assert [(feature.mean, feature.std) for feature in features] == [(0.5, 0.25), (0.1, 2.0)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--arch", "64,64", "--mean", "1"), "--mean needs a number for each of 8 features"),
        (("--arch", "64;64"), "--arch needs up to 3 widths"),
        (("--arch", "1,1,1,1"), "--arch needs up to 3 widths"),
        (("--arch", "9" * 5000), "--arch needs up to 3 widths"),
        (("--arch", "64,64", "--features", "progres"), "did you mean 'progress'"),
        (("--arch", "64,64", "--reference", "os:system"), "unknown reference"),
        (("--arch", "64,64", "--ratio", "0.5"), "ratio: Input should be greater than 1"),
        (("--arch", "64,64", "--std", *"10000000"), "std: Input should be greater"),
    ],
)
def test_a_mistaken_option_is_one_line_and_leaves_no_file(
    words: tuple[str, ...], named: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("policy", "import", archive, *words, "--out", tmp_path / "p.safetensors") == 2
    line = capsys.readouterr().err
    assert named in line
    assert line.count("\n") == 1
    assert not (tmp_path / "p.safetensors").exists()


def test_a_file_that_is_there_is_not_overwritten(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_text("mine")
    assert code("policy", "import", archive, "--arch", "64,64", "--out", tmp_path / "p.safetensors") == 2
    assert (tmp_path / "p.safetensors").read_text() == "mine"


def test_what_does_not_fit_is_listed_as_expected_and_found(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(hostile.sb3_archive(tmp_path / "MARKER", hostile.sb3_weights(8, 32, 2, extra=torch.zeros(3))))
    with pytest.raises(ArtifactRefusedError) as caught:
        read_actor(archive, WIDTHS)
    message = str(caught.value)
    assert "mlp_extractor.policy_net.0.weight: expected float [64, 8], found float [32, 8]" in message
    assert "mlp_extractor.policy_net.2.weight: expected float [64, 64], found nothing" in message
    assert "action_net.weight: expected float [2, 64], found float [2, 32]" in message
    with pytest.raises(ArtifactRefusedError, match=r"extra: expected nothing, found float \[3\]"):
        read_actor(archive, (8, 32, 2))


def test_a_payload_in_data_is_never_followed(archive: Path, tmp_path: Path) -> None:
    """Case 2: the archive's `data` holds a pickle that SB3's own loader follows; here it may be anything."""
    for more in ({}, {"data": b"\x80\x04 no pickle at all", "pytorch_variables.pth": pickle.dumps([1])}):
        archive.write_bytes(hostile.sb3_archive(tmp_path / "MARKER", hostile.sb3_weights(*WIDTHS), **more))
        assert read_actor(archive, WIDTHS)["0.weight"].shape == (64, 8)
        assert read_architecture(archive) == ([64, 64], None if more else "tanh")
    assert not (tmp_path / "MARKER").exists()


def test_a_missing_archive_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist") as caught:
        read_actor(tmp_path / "none.zip", WIDTHS)
    assert not isinstance(caught.value, ArtifactRefusedError)


def test_the_refusal_of_an_archive_names_the_command_that_converts_it(archive: Path) -> None:
    """Case 1."""
    with pytest.raises(ArtifactRefusedError) as caught:
        load_rule(str(archive))
    assert "is a Stable-Baselines3 archive, which can run code when loaded" in str(caught.value)
    assert f"`rltemp policy import --arch 64,64 {archive}`" in str(caught.value)


def test_show_prints_the_manifest_and_a_pin_that_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("policy", "show", "universal@1") == 0
    said = capsys.readouterr().out
    assert "passes every check" in said
    assert "Feature 2: teacher_margin v1" in said
    assert "Action: the temperatures of ttm:ce_weight=0.1,kd_weight=0.9 times 5^a" in said
    pinned = said.strip().rpartition("Pinned: ")[2]
    assert load_method(pinned).name == pinned


def test_a_pinned_policy_is_that_file_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.safetensors"
    file.write_bytes(SHIPPED["universal@1"].read_bytes())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    signals = f"{file}@sha256:{sha256}"
    assert load_method(signals).name == signals
    assert load_method(f"matched:{signals}").matched
    other = ("f" if sha256[0] != "f" else "e") + sha256[1:]
    with pytest.raises(ArtifactRefusedError, match=f"SHA-256 mismatch .pinned {other[:12]}..., file {sha256[:12]}"):
        load_rule(f"{file}@sha256:{other}")
    for wrong in ("", "ab12", sha256.upper(), sha256 + "0"):
        with pytest.raises(BadInputError, match="pins no SHA-256; needed: its 64 digits"):
            load_rule(f"{file}@sha256:{wrong}")


def test_a_policy_around_an_unknown_reference_is_refused_by_name(tmp_path: Path) -> None:
    file = random_policy(tmp_path / "p.safetensors")
    assert load_rule(str(file)) is not None
    for reference in ("nobody", "ctkd", "none", "fixed:temperature=0", "fixed:temperature=1e999", "fixed:x=1"):
        forge(file, {**manifest_of(file), "reference": reference})
        with pytest.raises(ArtifactRefusedError, match=r"^policy file p\.safetensors: "):
            load_rule(str(file))
