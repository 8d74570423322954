"""A policy: the features that it sees, the actions that it takes, its file, and the policy as a temperature rule.

Inside: `features` computes what a policy sees, `actions` turns its answer into temperatures, `policy_file` reads and
    writes the file, `rule` is the policy as a rule. Reading a policy file runs no code of it.
To extend: write a feature as a function and enter it into `FEATURES`, with one test that is worked by hand.
Imports: `data` and below; neither Gymnasium nor Stable-Baselines3.
Imported by: every package above, `training` and `envs` among them.
"""
