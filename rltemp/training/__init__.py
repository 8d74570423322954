"""One student's run: the step and its loop, guards, checkpoints, processes that share a batch, TensorBoard.

`distill` has the step, `tracked_run` what the command `distill` adds to it. Imports `loading` and below.
"""
