"""What a comparison hands back: tables, plots, pages, and TensorBoard's HParams.

Inside: `tables` makes Markdown and CSV, `plots` draws, `html_page` joins both into one page.
To extend: write a section as a function of the results and add it to the page.
Imports: `experiments` and below.
Imported by: `cli` alone.
"""
