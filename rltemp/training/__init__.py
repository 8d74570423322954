"""The run of one student: its steps, guards, checkpoints, processes that share a batch, and TensorBoard.

Inside: `distill` takes the steps, `guards` watches the numbers, `checkpoints` saves and resumes, `ddp` shares a batch
    between processes, `tensorboard` writes the log, `tracked_run` joins them for the command `distill`.
To extend: write a step as a function of a run and a method, and give it to `train`; enter a new tag into `TAGS`.
Imports: `loading` and below.
Imported by: `remote`, `experiments`, `report`, `envs`, `agents`, `service` and `cli`.
"""
