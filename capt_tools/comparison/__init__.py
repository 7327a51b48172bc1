"""Parts of scripts/compare.py: find runs, make rows of them, and print the rows."""
