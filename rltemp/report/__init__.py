"""What a comparison hands back: tables, plots, pages, and TensorBoard's HParams.

Imports `experiments` and below; only `cli` uses it.
"""
