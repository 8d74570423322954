"""A policy: the features that it sees, the actions that it takes, its file, and the policy as a temperature rule.

To add a feature: write its function in `features` and enter it into `FEATURES`. Reading a policy file runs no code of
it. Imports `rules`, `io` and below; needs neither Gymnasium nor Stable-Baselines3.
"""
