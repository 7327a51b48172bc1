"""Parts of ``capt prompts``: the journal of answers, the questions, and the asking."""
