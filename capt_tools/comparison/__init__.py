"""Parts of ``capt compare``: find runs, make rows of them, and print the rows."""
