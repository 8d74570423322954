"""Agents that learn a temperature policy, on Stable-Baselines3's PPO; `rltemp.agents.train.train_policy` is the way in.

Inside: `train`, `selection`, `callbacks`, `alarms` and `resume` train on tasks of this process; `online`,
    `run_series` and `report_client` train runs that a service learns from, `reports`, `learner` and `saved_learner` are
    the side that learns; `network` and `samples` hold the two kinds of agents, `config` the options.
To extend: add an agent beside `network` and `samples`, and name it in `config`.
Imports: `envs`, `remote` and below.
Imported by: `service`, `integrations` and `cli`.
"""
