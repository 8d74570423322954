"""Agents that learn a temperature policy, on Stable-Baselines3's PPO; `rltemp.agents.train.train_policy` is the way in.

Inside: `train`, `selection`, `callbacks`, `alarms` and `resume` train on tasks of this process; `online`,
    `run_series` and `report_client` train runs that a service learns from, `reports` and `learner` are that service's
    side; `network` and `samples` hold the two kinds of agents, `config` the options.
To extend: add an agent beside `network` and `samples`, and name it in `config`.
Imports: `envs`, `remote` and below.
Imported by: `service` and `cli`.
"""
