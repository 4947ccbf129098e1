"""A run as people look at it: one self-contained HTML page (`page.py`), one figure for documents (`figure.py`)."""
