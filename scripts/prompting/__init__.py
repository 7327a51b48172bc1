"""Parts of ``scripts/make_prompts.py``: the journal of answers, the questions, and the asking."""
