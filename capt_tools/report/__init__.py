"""Parts of ``capt report``, and what the other tools about finished runs share with it."""
