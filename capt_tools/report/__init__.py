"""Parts of ``scripts/confusion_report.py``, and what the other scripts about finished runs share with it."""
