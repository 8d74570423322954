"""Agents that learn a temperature policy, on Stable-Baselines3's PPO.

Inside: `train` is the way in (`train_policy`), `config` holds its options, `network` the policy network and its
    exploration, `selection` chooses what is exported, `learner` and `online` learn from runs of other processes.
To extend: add an agent beside `network` and `samples`, and name it in `config`.
Imports: `envs`, `remote` and below.
Imported by: `service` and `cli`.
"""
