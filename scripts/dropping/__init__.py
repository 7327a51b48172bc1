"""Behind scripts/drop_in.py: the edit of a host's train.py, and the files that are put beside it."""
