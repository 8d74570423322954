"""Distillation as a benchmark in the form of DACBench's: a configuration, instances, and `get_environment`.

    benchmark = DistillBenchmark()
    benchmark.config.seed = 3
    env = benchmark.get_environment()    # `rltemp/Distill-v0`; every reset goes on to the next instance

An instance is a recipe: a learning rate, a schedule, a length. A policy for one of them is no policy for the others, so
there are instances to learn from and others to test on. Nothing of DACBench is imported: its runner, its logger and its
wrappers ask for these names alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym

from rltemp.data.task import with_options
from rltemp.envs.assignments import OneTask
from rltemp.envs.distill_env import Array, DistillEnv
from rltemp.errors import BadInputError
from rltemp.kd.names import lookup
from rltemp.policy.features import DEFAULT_FEATURES

Instances = dict[int, dict[str, Any]]
"""Options of a recipe, by the instance's number."""


class Configuration(dict[str, Any]):
    """A dictionary whose entries are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the configuration has no {name}; it has: {', '.join(self)}")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _instances(rates: tuple[float, ...], schedules: tuple[str, ...]) -> Instances:
    recipes = [{"learning_rate": rate, "schedule": schedule} for rate in rates for schedule in schedules]
    return dict(enumerate(recipes))


DEFAULTS: dict[str, Any] = {
    "task": "digits",
    "method": "fixed:4",
    "features": list(DEFAULT_FEATURES),
    "reward_interval": None,
    "seed": 0,
    "reward_range": [-1.0, 1.0],
    "instance_update_func": "round_robin",
    "instance_set": _instances((0.03, 0.1, 0.3), ("cosine", "constant")),
    "test_set": _instances((0.06, 0.2), ("linear", "step")),
    "benchmark_info": {
        "identifier": "distillation",
        "name": "Temperatures of Knowledge Distillation",
        "reward": "Change of the student's smooth accuracy on probe samples",
        "state_description": list(DEFAULT_FEATURES),
        "action_description": ["Student's Temperature", "Teacher's Temperature"],
    },
}
"""What the benchmark is where nobody changes it."""
SCHEMES = "round_robin", "random", "none"
"""How a reset finds its instance: the next one, any, or the one that is set."""


class DistillBenchmark:
    """Distillation on one task, in instances.

    Args:
        config_path: A file that `save_config` wrote.
        config: Entries that are other than in `DEFAULTS`; give one of the two.

    Raises:
        BadInputError: For both, for a file that cannot be read, and for an entry that nobody knows.
    """

    def __init__(self, config_path: str | Path | None = None, config: Mapping[str, Any] | None = None) -> None:
        if config_path is not None and config is not None:
            raise BadInputError("give a benchmark config_path or config, not both")
        self.config = Configuration(deepcopy(DEFAULTS))
        self.wrap_funcs: list[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = []
        if config_path is not None:
            self.read_config_file(config_path)
        self._change(config or {})

    def get_config(self) -> Configuration:
        """The configuration, which may be changed."""
        return self.config

    def set_seed(self, seed: int) -> None:
        """Begin the environment's randomness at this seed."""
        self.config.seed = seed

    def register_wrapper(self, wrap: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]) -> None:
        """Put a wrapper around environments to come, outside of those that are there."""
        self.wrap_funcs.append(wrap)

    def read_config_file(self, path: str | Path) -> None:
        """Take the entries of a JSON file.

        Raises:
            BadInputError: Where it cannot be read, or has an entry that nobody knows.
        """
        try:
            found = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise BadInputError(f"{path} is no configuration of a benchmark: {error}") from error
        self._change(found)

    def save_config(self, path: str | Path) -> None:
        """Write the configuration as JSON."""
        Path(path).write_text(json.dumps(self.config, indent=2) + "\n", "utf-8")

    def get_environment(self) -> gym.Env[Any, Any]:
        """The environment of the configuration, within the wrappers."""
        env: gym.Env[Any, Any] = InstancesEnv(self.config)
        for wrap in self.wrap_funcs:
            env = wrap(env)
        return env

    def get_benchmark(self, seed: int = 0) -> gym.Env[Any, Any]:
        """The environment that results are reported on: that of `DEFAULTS`."""
        self.config = Configuration(deepcopy(DEFAULTS))
        self.set_seed(seed)
        return self.get_environment()

    def _change(self, entries: Mapping[str, Any]) -> None:
        for name, value in deepcopy(dict(entries)).items():
            lookup(DEFAULTS, name, "entry of a benchmark's configuration")
            numbered = name in ("instance_set", "test_set")  # JSON has no numbers for keys
            self.config[name] = {int(number): one for number, one in value.items()} if numbered else value


class InstancesEnv(DistillEnv):
    """`DistillEnv`, in which every run is of an instance; the names are those of DACBench's environments.

    Args:
        config: As `DistillBenchmark` has it.

    Raises:
        BadInputError: For an instance that is no recipe of the task, or that has batches of another size.
    """

    _index: int

    def __init__(self, config: Configuration) -> None:
        super().__init__(
            config.task, method=config.method, features=config.features, reward_interval=config.reward_interval
        )
        self.config = config
        self.benchmark_info = config.benchmark_info
        self.reward_range = tuple(config.reward_range)
        lookup(dict.fromkeys(SCHEMES), config.instance_update_func, "instance_update_func")
        self._sources: dict[str, OneTask] = {}
        self._sets: dict[bool, Instances] = {False: config.instance_set, True: config.test_set}
        for instance in (*config.instance_set.values(), *config.test_set.values()):
            self._source_of(instance)
        self.initial_seed: int | None = config.seed
        self._begun = False
        self.use_training_set()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin a run of the next instance, or of `instance_id` or `instance` among the options."""
        if seed is not None or not self._begun:
            self.initial_seed = self.initial_seed if seed is None else seed
            gym.Env.reset(self, seed=self.initial_seed)
        self._begun = True
        given = options or {}
        self.use_next_instance(given.get("instance"), given.get("instance_id"), given.get("scheme"))
        self._source = self._source_of(vars(self.instance))
        self.problem, self.n_steps = self._source.problem, self._source.steps
        return super().reset()

    def use_next_instance(
        self, instance: dict[str, Any] | None = None, instance_id: int | None = None, scheme: str | None = None
    ) -> None:
        """Choose the instance of the next run: this one, the one of this number, or one by the scheme."""
        scheme = scheme or self.config.instance_update_func
        if instance is not None:
            self.instance = SimpleNamespace(**instance)
        elif instance_id is not None:
            self.set_inst_id(instance_id)
        elif scheme != "none":
            chosen = self.np_random.integers(len(self.instance_id_list)) if scheme == "random" else self._index + 1
            self._index = int(chosen) % len(self.instance_id_list)
            self.set_inst_id(self.instance_id_list[self._index])

    def set_inst_id(self, inst_id: int) -> None:
        """Make this instance the one that is set.

        Raises:
            BadInputError: For a number that the set does not have.
        """
        if inst_id not in self.instance_set:
            raise BadInputError(f"there is no instance {inst_id}; there are {', '.join(map(str, self.instance_set))}")
        self.inst_id, self.instance = inst_id, SimpleNamespace(**self.instance_set[inst_id])
        self._index = self.instance_id_list.index(inst_id)

    def get_inst_id(self) -> int:
        """The number of the instance of the run."""
        return self.inst_id

    def get_instance(self) -> SimpleNamespace:
        """The instance of the run: options of a recipe, as attributes."""
        return self.instance

    def get_instance_set(self) -> Instances:
        """All instances of the set in use."""
        return self.instance_set

    def use_training_set(self) -> None:
        """Go on with the instances to learn from, beginning at the first."""
        self._use(test=False)

    def use_test_set(self) -> None:
        """Go on with the instances to test on, beginning at the first."""
        self._use(test=True)

    def _use(self, test: bool) -> None:
        self.test, self.instance_set = test, self._sets[test]
        self.instance_id_list = sorted(self.instance_set)
        if not self.instance_id_list:
            raise BadInputError(f"the benchmark's {'test_set' if test else 'instance_set'} is empty")
        self.set_inst_id(self.instance_id_list[0])
        self._index = -1  # the first reset has the first

    def _source_of(self, instance: dict[str, Any]) -> OneTask:
        key = json.dumps(instance, sort_keys=True)
        if key not in self._sources:
            problem = self.problem
            changed = replace(problem, task=with_options(problem.task, instance))
            if changed.batch_samples != problem.batch_samples:
                raise BadInputError(f"instance {instance}: batches of one size alone; leave batch_size out")
            self._sources[key] = OneTask(changed, redraw=False)
        return self._sources[key]
