"""Networks by name, students that are trained as one stack, and weight files that run no code.

Inside: `networks` names every network in `MODELS`, `transformer` is the one for tokens, `stack` trains many students in
    one call, `weight_files` saves and reads their weights.
To extend: write a factory in `networks` and enter it into `MODELS`.
Imports: `rules` and below.
Imported by: every package above, `data` first.
"""
