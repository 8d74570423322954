"""Agents that learn temperature policies, on Stable-Baselines3: `rltemp.agents.train.train_policy` is the way in.

`train`, `selection`, `callbacks`, `alarms`, `resume` and `search` train on tasks of this process. `online`,
`run_series` and `report_client` train runs that a service learns from (`rltemp distill --learn`); `reports` and
`learner` are that service's side. `network` and `samples` hold the two kinds of agents. Imports `envs`, `remote` and
below.
"""
