"""Train a temperature policy with Stable-Baselines3's PPO: `train_policy`.

Every update trains `students` students to the end of their run. With agent "run" they form groups that share initial
weights, samples and batches and differ by a draw of the policy's weights alone; a run's return is the improvement of
its student on probe data, and PPO moves the policy towards the draws that did better than their group. With agent
"sample" every temperature is a decision (`rltemp.agents.samples`). The policy that is kept is the running mean of the
weights that does best on validation data, the reference rule itself among the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger
from torch import Tensor

from rltemp.agents.alarms import CollapseCallback
from rltemp.agents.callbacks import RunCallback
from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import (
    KINDS,
    RunBuffer,
    RunPolicy,
    RunPPO,
    SampleNetwork,
    observation_statistics,
    observed,
)
from rltemp.agents.policy_export import export_policy, starting_policy
from rltemp.agents.resume import Agent, CheckpointCallback, EventWriter, Resumable
from rltemp.agents.samples import SampleEnv, actor_weights, sample_model
from rltemp.agents.selection import SelectionCallback, TaskTrial, Trial, VarietyTrial, judged
from rltemp.compiling.mode import is_compiled
from rltemp.data.problem import Problem
from rltemp.envs.advantages import ADVANTAGES
from rltemp.envs.episode import Decision
from rltemp.envs.shares import Workers, open_workers
from rltemp.envs.variety import SELECTION, Variety
from rltemp.envs.vector import DistillVecEnv
from rltemp.io.progress import Bar
from rltemp.kd.names import shareable
from rltemp.policy.actions import ActionScale
from rltemp.policy.fading import seen_ranges
from rltemp.rules.published_methods import reference_method
from rltemp.training.checkpoints import FOLDER as CHECKPOINTS
from rltemp.training.checkpoints import Checkpoints
from rltemp.training.steps import Step, plain_step
from rltemp.training.tensorboard import Tracker

POLICY_FILE = "policy.safetensors"
CHECKPOINTING: dict[str, Any] = {"unit": "update", "share": 0}
"""Of a policy's training: rollouts take longer than saving, and what comes between two saves is lost."""


def train_policy(
    problem: Problem | Variety,
    config: PolicyConfig,
    out: Path,
    checkpoints: Checkpoints | None = None,
    workers: int = 1,
    *,
    ray: str | None = None,
    step: Step = plain_step,
) -> dict[str, Any]:
    """Train a policy on a problem and leave its file, checkpoints and TensorBoard events in a folder.

    Args:
        problem: The task, loaded, or a variety of tasks.
        config: How.
        out: The folder; gets `policy.safetensors`, `checkpoints/` and `tensorboard/`.
        checkpoints: Where it goes on from, and what it leaves; by default those in the folder.
        workers: Processes that train the students, each with the threads of this one. On the CPU the result is the
            same for any number: to the last bit where each gets a multiple of 16 students, else to the last digits.
        ray: The address of a Ray cluster, whose processes they are then.
        step: How a step of a student is taken.

    Returns:
        What came out: the policy's file and SHA-256, the update that was kept, and potentials on validation data of
        the kept policy and of the reference.

    Raises:
        BadInputError: Where there are more workers than students, or no cluster can be reached.
        ArtifactRefusedError: Where there are checkpoints and none can be used.
        InterruptedRunError: Where a signal came; what is saved goes on.
        TrainingStoppedError: Where workers are lost again and again; what is saved goes on.
    """
    checkpoints = checkpoints or Checkpoints(out / CHECKPOINTS, **CHECKPOINTING)
    config.check_workers(workers, ray)
    gpus = float((problem.problem if isinstance(problem, Variety) else problem).device.type == "cuda")
    with open_workers(workers, ray, gpus) as shared:
        return _train(problem, config, out, checkpoints, step, shared)


def _train(
    problem: Problem | Variety,
    config: PolicyConfig,
    out: Path,
    checkpoints: Checkpoints,
    step: Step,
    workers: Workers | None,
) -> dict[str, Any]:
    count = config.validation_students
    decision = decision_of(config)
    trial: Trial
    if isinstance(problem, Variety):
        trial = VarietyTrial(Variety(SELECTION, problem.seed), count, decision, step)
    else:
        trial = TaskTrial(problem, count, decision, step)
    worth = judged(trial, workers)  # before the environment: what both need then reaches the workers once
    env = make_env(problem, config, workers, step)
    observations = observed(env, config.seed)
    model = make_model(env, config, observations)
    network, weights = controller(model)
    selection = SelectionCallback(worth, config, network, weights)
    steps, bar = config.updates * model.n_steps * env.num_envs, Bar("policy")
    run = RunCallback(env, lambda taken: bar(taken, steps))
    alarms = CollapseCallback(run, selection, config)
    saved = checkpoints.resume()  # from here on nothing but the run draws from the global generators
    tracker = Tracker(out / "tensorboard", saved["events"] if saved else 0)
    with checkpoints, tracker, bar:
        model.set_logger(Logger(folder=None, output_formats=[EventWriter(tracker)]))
        parts: dict[str, Resumable] = {"selection": selection, "alarms": alarms, "agent": Agent(model, env)}
        keeper = CheckpointCallback(checkpoints, tracker, parts)
        if saved is not None:
            keeper.restore(saved)
        callbacks = CallbackList([keeper, run, selection, alarms])
        model.learn(steps - model.num_timesteps, callback=callbacks, log_interval=1, reset_num_timesteps=saved is None)
    if alarms.ended:
        selection.keep_reference()
    found = {
        "kept_update": selection.kept_update,
        "validation_potential": selection.kept_potential,
        "reference_validation_potential": selection.reference_potential,
    }
    options = {name: shareable(str(value)) for name, value in asdict(config).items()}
    told: dict[str, str] = {"compiled": "yes" if is_compiled(step) else "no", **checkpoints.mark()}
    provenance: dict[str, str | int | float] = {**_described(problem), **options, **found, **told}
    ranges = seen_ranges(observations, config.features)
    sha256 = export_policy(out / POLICY_FILE, network, selection.kept, env.decision, provenance, ranges)
    return {
        "policy": POLICY_FILE,
        "sha256": sha256,
        **found,
        "compiled": is_compiled(step),
        "students_trained": config.updates * config.students_per_update,
        "collapsed": bool(alarms.collapse),
        "collapse": alarms.collapse or None,
        **checkpoints.mark(),
    }


def make_env(
    problem: Problem | Variety, config: PolicyConfig, workers: Workers | None = None, step: Step = plain_step
) -> DistillVecEnv:
    """The environment that a configuration trains in."""
    decision = decision_of(config)
    return DistillVecEnv(
        problem,
        config.students_per_update,
        replicas=config.replicas,
        method=decision.method,
        features=decision.features,
        scale=decision.scale,
        redraw=config.redraw,
        looks=config.looks,
        mixup_runs=math.ceil(config.mixup * config.updates),
        seed=config.seed,
        step=step,
        workers=workers,
        tasks=config.tasks_per_update,
        vary=config.vary and config.agent == "run",
    )


def decision_of(config: PolicyConfig) -> Decision:
    """What an action means to a policy of this configuration."""
    scale = ActionScale(**{one.name: getattr(config, one.name) for one in fields(ActionScale)})
    return Decision.make(reference_method(config.reference), config.features, scale)


def _described(problem: Problem | Variety) -> dict[str, str]:
    """What the policy was trained on, for its file."""
    if isinstance(problem, Variety):
        return {"task": f"variety:{problem.seed}"}
    return {"task": shareable(problem.task.name), "teacher": problem.task.teacher, "student": problem.task.student}


def make_model(env: DistillVecEnv, config: PolicyConfig, observations: Tensor | None = None) -> PPO:
    """SB3's PPO as the configured agent; observations `[N, F]` are what it normalises by, by default `observed`."""
    mean, std = torch.zeros(len(config.features)), torch.ones(len(config.features))
    if (start := starting_policy(config)) is not None:
        mean, std = torch.tensor([[one.mean, one.std] for one in start.manifest.features]).T
    elif config.normalise:
        mean, std = observation_statistics(observed(env, config.seed) if observations is None else observations)
    network = partial(
        SampleNetwork, mean, std, config.hidden, config.activation, config.shared, env.decision.scale.size
    )
    common: dict[str, Any] = {
        "n_steps": env.run_steps,
        "n_epochs": config.passes,
        "learning_rate": _linear(config.learning_rate, config.learning_rate_end),
        "clip_range": config.clip,
        "gamma": config.discount,
        "gae_lambda": config.gae_lambda,
        "max_grad_norm": math.inf if config.max_gradient is None else config.max_gradient,
        "seed": config.seed,
        "device": "cpu",
    }
    model = (sample_model if config.agent == "sample" else run_model)(env, network, config, common)
    if start is not None:
        assert isinstance(model.policy, RunPolicy)  # agent sample takes no `start_from`
        parts = [start.weights[f"{layer}.{kind}"] for layer in range(len(start.manifest.layers)) for kind in KINDS]
        model.policy.network.weights.data.copy_(torch.cat([part.flatten() for part in parts]))
    return model


def run_model(
    env: DistillVecEnv, network: Callable[[], SampleNetwork], config: PolicyConfig, common: dict[str, Any]
) -> PPO:
    """SB3's PPO with the network, the exploration and the buffer of `rltemp.agents.network`."""
    model = RunPPO(
        RunPolicy,
        env,
        batch_size=common["n_steps"] * env.num_envs,
        stats_window_size=env.students,  # SB3 averages its last 100 episodes
        normalize_advantage=False,
        vf_coef=0.0,
        rollout_buffer_class=RunBuffer,
        policy_kwargs={
            "network": network,
            "exploration": config.exploration,
            # Few updates, each noisy: a shorter memory of the gradient's size than Adam's default thousand.
            "optimizer_kwargs": {"betas": (0.9, 0.99)},
        },
        **common,
    )
    model.judge = ADVANTAGES[config.advantage]
    return model


def controller(model: PPO) -> tuple[SampleNetwork, Callable[[], Tensor]]:
    """What a model's policy is without its noise, as it will be exported: a network, and its present weights `[P]`."""
    policy = model.policy
    if isinstance(policy, RunPolicy):
        network = policy.network
        return network, lambda: network.weights.detach()
    env = model.get_env()
    assert isinstance(env, SampleEnv)  # `make_model` builds no other
    return env.network, lambda: actor_weights(policy)


def _linear(rate: float, end: float) -> Callable[[float], float]:
    return lambda remaining: rate * (end + (1 - end) * remaining)
