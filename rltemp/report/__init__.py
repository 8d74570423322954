"""What `compare`, `study` and `explain` write: tables, figures, `report.md`, `report.html`, TensorBoard's HParams.

`comparison`, `study` and `explanation` go from options to files. `tables` writes tables, `drawing` holds what all
figures share, `templates/` the words. A new table is a call of `tables.markdown`, a new figure of the page one
function in `plots` and one section in `templates/report.html`. Imports `experiments` and below; only `cli` uses it.
"""
