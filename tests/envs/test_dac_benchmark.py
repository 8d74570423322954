"""The environment as a benchmark of DACBench's form: its configuration, its instances, and DACBench's own runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rltemp import BadInputError
from rltemp.envs.dac_benchmark import DEFAULTS, DistillBenchmark, InstancesEnv

INSTANCES = {0: {"epochs": 1}, 1: {"epochs": 2, "learning_rate": 0.2}, 5: {"epochs": 1, "schedule": "step"}}
SMALL = {"task": "toy", "instance_set": INSTANCES, "test_set": {9: {"epochs": 1, "momentum": 0.0}}, "seed": 4}


@pytest.fixture(scope="module")
def env() -> InstancesEnv:
    made = DistillBenchmark(config=SMALL).get_environment()
    assert isinstance(made, InstancesEnv)
    return made


def test_every_run_is_of_the_next_instance_and_follows_its_recipe(env: InstancesEnv) -> None:
    found, lengths = [], []
    for _ in range(4):
        env.reset()
        found.append(env.get_inst_id())
        recipe, wanted = env.episode.run.recipe, vars(env.get_instance())
        assert {name: getattr(recipe, name) for name in wanted} == wanted == INSTANCES[env.get_inst_id()]
        lengths.append(env.episode.steps)
        assert lengths[-1] == env.n_steps
    assert found == [0, 1, 5, 0]
    assert lengths[1] == 2 * lengths[0]


def test_an_instance_may_be_chosen_and_the_test_set_is_another(env: InstancesEnv) -> None:
    env.reset(options={"instance_id": 5})
    assert env.get_inst_id() == 5
    env.reset(options={"instance": {"epochs": 3}})
    assert vars(env.get_instance()) == {"epochs": 3}
    env.use_test_set()
    env.reset()
    assert (env.get_inst_id(), [*env.get_instance_set()]) == (9, [9])
    with pytest.raises(BadInputError, match="there is no instance 0; there are 9"):
        env.reset(options={"instance_id": 0})
    env.use_training_set()
    env.reset()
    assert env.get_inst_id() == 0


def test_a_seed_of_the_configuration_gives_the_same_runs() -> None:
    runs: list[Any] = []
    for config in (SMALL, SMALL, {**SMALL, "seed": 5}):
        env = DistillBenchmark(config={**config, "instance_update_func": "random"}).get_environment()
        first, _ = env.reset()
        runs.append((first, [env.reset() and env.unwrapped.get_inst_id() for _ in range(8)]))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] != runs[2][1]


def test_a_configuration_is_written_read_and_changed(tmp_path: Path) -> None:
    benchmark = DistillBenchmark(config=SMALL)
    benchmark.set_seed(8)
    benchmark.save_config(tmp_path / "small.json")
    assert (
        DistillBenchmark(tmp_path / "small.json").get_config() == benchmark.config == {**DEFAULTS, **SMALL, "seed": 8}
    )
    benchmark.register_wrapper(lambda env: gymnasium.wrappers.TimeLimit(env, 2))
    env = benchmark.get_environment()
    env.reset()
    assert [env.step(env.action_space.sample() * 0)[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"taks": "toy"}, "did you mean 'task'"),
        ({**SMALL, "instance_set": {0: {"batch_size": 3}}}, "batches of one size alone"),
        ({**SMALL, "instance_set": {0: {"learning_rat": 3}}}, "did you mean 'learning_rate'"),
        ({**SMALL, "instance_set": {}}, "the benchmark's instance_set is empty"),
        ({**SMALL, "instance_update_func": "robin"}, "unknown instance_update_func 'robin'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        DistillBenchmark(config=config).get_environment()


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadInputError, match=r"bad\.json is no configuration of a benchmark"):
        DistillBenchmark(tmp_path / "bad.json")
    with pytest.raises(BadInputError, match="config_path or config, not both"):
        DistillBenchmark(tmp_path / "bad.json", {})


def test_dacbenchs_own_runner_runs_it(env: InstancesEnv) -> None:
    runner = pytest.importorskip("dacbench.runner", reason="DACBench is not installed: pip install dacbench")
    agents, wrappers = (pytest.importorskip(f"dacbench.{name}") for name in ("agents", "wrappers"))
    agent = agents.StaticAgent(env, np.zeros(env.action_space.shape, np.float32))
    for wrap in (lambda env: env, wrappers.PerformanceTrackingWrapper):
        assert np.isfinite(runner.run_benchmark(wrap(env), agent, 2))
