"""What `compare`, `study` and `explain` write: tables, figures, `report.md`, `report.html`, TensorBoard's HParams.

Inside: `comparison` and `explain_page` go from options to files. `tables` writes tables, `drawing` holds what
    all figures share, `templates/` the words, `verdict` the sentence that comes first.
To extend: a new table is a call of `tables.markdown`; a new figure of the page is one function in `plots` and one
    section in `templates/report.html`.
Imports: `experiments` and below.
Imported by: `cli` alone.
"""
