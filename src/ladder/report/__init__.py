"""Reports of a run: a self-contained HTML page (`page.py`) and a figure for documents (`figure.py`)."""
