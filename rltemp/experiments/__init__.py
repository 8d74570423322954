"""Comparisons, studies and explanations: which students are trained, what is kept of them, and the statistics.

Inside: `compare` trains many students under many methods, `result_cache` keeps what has been trained, `statistics`
    tests differences, `study` and `explain` say whether and why a policy wins.
To extend: add a measure in `measures`; a new experiment is a module that asks `result_cache` for results.
Imports: `remote`, `compiling` and below.
Imported by: `report` and `cli`.
"""
