"""CLIP itself: files that hold one, the towers, prompts walked through them, their tokens and precision."""
