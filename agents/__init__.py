"""Agents that learn temperatures, on Stable-Baselines3: `rltemp.agents.train.train_policy` is the way in."""
