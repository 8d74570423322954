"""Data sets, their splits, tasks, and the problem in memory that a training works on.

To add a data set: write its loader in `sources` and enter it into `DATASETS`; a task is an entry of `TASKS`. Imports
`models` and below.
"""
