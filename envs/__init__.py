"""Environments: `rltemp/Distill-v0` for Gymnasium, registered by this import, and a `VecEnv` for SB3.

import gymnasium
import rltemp.envs

env = gymnasium.make("rltemp/Distill-v0")     # or "rltemp.envs:rltemp/Distill-v0", without the second import

Whoever trains policies wants `rltemp.envs.vector.DistillVecEnv`.
"""

import gymnasium

# No max_episode_steps: a run ends, truncated, after its last step.
gymnasium.register(id="rltemp/Distill-v0", entry_point="rltemp.envs.distill_env:DistillEnv")
