"""Networks by name, stacks of students, and weight files that run no code.

To add a network: write its factory in `networks` and enter it into `MODELS`. Imports `io` and below.
"""
