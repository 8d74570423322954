"""Comparisons, studies and explanations: which students are trained, what is kept of them, and statistics.

`compare` trains every method on the same students (`students`, `pool`); results are cached (`result_cache`), so that
nothing is trained twice. A control of a study is added in `recorded_controls`, a measure in `measures`. Imports
`remote` and below; `report` writes what comes out.
"""
