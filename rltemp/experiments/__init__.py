"""Comparisons, studies and explanations: which students are trained, what is kept of them, and statistics.

Results are cached, one small file for a stack of students, so that nothing is trained twice. Imports `remote` and
below; `report` writes what comes out.
"""
