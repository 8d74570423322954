"""Environments: `rltemp/Distill-v0` for Gymnasium, which this import registers, and a `VecEnv` for SB3.

    env = gymnasium.make("rltemp.envs:rltemp/Distill-v0")    # or "rltemp/Distill-v0", after `import rltemp.envs`

Inside: `distill_env` is the Gymnasium environment of one student, `dac_benchmark` gives it the form of DACBench's
    benchmarks, and `vector` holds `DistillVecEnv`, which trains many students at once and is what policies learn in.
    `episode` is the run that both step through, `played` one that is trained to its end under drawn weights, `shares`
    gives its students to worker processes, `probe` and `rewards` measure them.
To extend: write a potential in `rewards` and enter it into `POTENTIALS`.
Imports: `compiling` and below.
Imported by: `agents`, `service` and `cli`.
"""

import gymnasium

# No max_episode_steps: a run ends, truncated, after its last step.
gymnasium.register(id="rltemp/Distill-v0", entry_point="rltemp.envs.distill_env:DistillEnv")
