"""CAPT: Confusion-Aware Prompt Tuning (arXiv 2603.02557) as a trainer for Dassl and CoOp-style repositories.

Importing the package registers the trainer ``CAPT``; :func:`extend_cfg` adds its configuration node. It imports torch,
torchvision, numpy, yacs, dassl, clip, safetensors, tqdm and itself, so this folder works when copied alone into another
repository. :func:`load` serves a trained run; it needs no dassl, and where nobody imports dassl, neither does this.
"""

from typing import TYPE_CHECKING, Any

from .backbone.prompted_clip import PromptedCLIP, load_clip
from .bank.confusion_bank import ConfusionBank
from .bank.files import BankMismatchError
from .config import PUBLISHED, extend_cfg
from .method.model import CAPTModel, CAPTOutput, CAPTSettings
from .registration import register_trainer
from .run.metrics import ConfusionReport, confusion_report
from .use.predictor import ImageError, Prediction, Predictor, load

if TYPE_CHECKING:
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
    "ImageError",
    "Prediction",
    "Predictor",
    "PromptedCLIP",
    "confusion_report",
    "extend_cfg",
    "load",
    "load_clip",
]

__version__ = "0.1.0"

register_trainer()


def __getattr__(name: str) -> Any:
    """``CAPT`` itself, the one name that needs Dassl."""
    if name != "CAPT":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .trainer import CAPT
    except ModuleNotFoundError as error:
        if error.name != "dassl":
            raise
        raise ImportError("the trainer CAPT needs dassl; `import capt_compat` first, or install Dassl") from error
    return CAPT
