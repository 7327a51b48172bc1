"""Behind ``capt drop-in``: the edit of a host's train.py, and the files that are put beside it."""
