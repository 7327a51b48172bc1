"""CLIP itself: the ``clip`` package, prompts walked through its towers, and their precision."""
