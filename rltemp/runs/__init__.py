"""What the commands do, as Python functions: train a policy, distil, compare, study and explain a task.

Inside: `distill` and `train_policy` hold a command's options and its run, `functions` is the entrance from Python.
To extend: write options with a method `run`, a function in `functions`, and a command of `cli` that prints.
Imports: `report`, `agents` and below.
Imported by: `cli`, and the package itself for its public names.
"""
