"""Data sets, their splits, the tasks made of them, and the problem in memory that a training works on.

Inside: `sources` names every data set in `DATASETS`, `splits` cuts them into training, probe, validation and test,
    `tasks` names every task, `problem` is a task that has been loaded.
To extend: write a loader in `sources` and enter it into `DATASETS`; add a task as an entry of `TASKS`.
Imports: `pictures` and below.
Imported by: every package above, `training` among them.
"""
