"""CAPT: Confusion-Aware Prompt Tuning (arXiv 2603.02557) as a trainer for Dassl and CoOp-style repositories.

Importing the package registers the trainer ``CAPT``; :func:`extend_cfg` adds its configuration node. It imports torch,
numpy, yacs, dassl, clip, safetensors, tqdm and itself, so this folder works when copied alone into another repository.
"""

from .config import PUBLISHED, extend_cfg
from .confusion_bank import BankMismatchError, ConfusionBank
from .confusion_metrics import ConfusionReport, confusion_report
from .model import CAPTModel, CAPTOutput, CAPTSettings
from .prompted_clip import PromptedCLIP, load_clip
from .trainer import CAPT

__all__ = [
    "CAPT",
    "PUBLISHED",
    "BankMismatchError",
    "CAPTModel",
    "CAPTOutput",
    "CAPTSettings",
    "ConfusionBank",
    "ConfusionReport",
    "PromptedCLIP",
    "confusion_report",
    "extend_cfg",
    "load_clip",
]

__version__ = "0.1.0"
