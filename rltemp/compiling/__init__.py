"""Training steps as compiled graphs.

Inside: `step` is a training step that compiles, `program` what a graph computes, `optimizer` torch's optimizers in
    it, `graph` traces, compiles and keeps it, `own_parts` looks at what a user wrote, `mode` decides whether it pays.
To extend: enter an optimizer's first state into `INITIAL`.
Imports: `training` and below.
Imported by: `experiments`, `report`, `envs` and `agents`.
"""
