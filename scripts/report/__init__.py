"""Parts of ``scripts/confusion_report.py``: reading runs, figures, order of classes, pictures, evidence, the page."""
