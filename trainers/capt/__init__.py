"""CAPT: Confusion-Aware Prompt Tuning (arXiv 2603.02557) as a trainer for Dassl and CoOp-style repositories.

Importing the package registers the trainer ``CAPT``; :func:`extend_cfg` adds its configuration node. It imports torch,
torchvision, numpy, yacs, dassl, clip, safetensors, tqdm and itself, so this folder works when copied alone into another
repository. :func:`load` serves a trained run; it needs no dassl, and where nobody imports dassl, neither does this.
Every name is imported when it is first used, and torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .old_names import MOVED, keep_old_names
from .registration import register_trainer

if TYPE_CHECKING:
    from .backbone.blocks import BlockPrompts
    from .backbone.prompted_clip import ImageFeatures, PromptedCLIP, load_clip
    from .bank.confusion_bank import ConfusionBank
    from .bank.files import BankMismatchError
    from .bases.any_model import ModelAsBase
    from .bases.base_model import BaseModel, BaseSpec, learner_state
    from .bases.learners import register_base_learner
    from .config import PUBLISHED, extend_cfg
    from .method.model import CAPTModel, CAPTOutput, CAPTSettings
    from .run.metrics import ConfusionReport, confusion_report
    from .trainer import CAPT
    from .use.predictor import ImageError, Prediction, Predictor, load

__all__ = [
    "CAPT",
    "PUBLISHED",
    "BankMismatchError",
    "BaseModel",
    "BaseSpec",
    "BlockPrompts",
    "CAPTModel",
    "CAPTOutput",
    "CAPTSettings",
    "ConfusionBank",
    "ConfusionReport",
    "ImageError",
    "ImageFeatures",
    "ModelAsBase",
    "Prediction",
    "Predictor",
    "PromptedCLIP",
    "confusion_report",
    "extend_cfg",
    "learner_state",
    "load",
    "load_clip",
    "register_base_learner",
]

__version__ = "0.1.0"

_HOMES = {
    "trainer": ["CAPT"],
    "config": ["PUBLISHED", "extend_cfg"],
    "use.predictor": ["ImageError", "Prediction", "Predictor", "load"],
    "method.model": ["CAPTModel", "CAPTOutput", "CAPTSettings"],
    "bank.confusion_bank": ["ConfusionBank"],
    "bank.files": ["BankMismatchError"],
    "run.metrics": ["ConfusionReport", "confusion_report"],
    "backbone.prompted_clip": ["ImageFeatures", "PromptedCLIP", "load_clip"],
    "backbone.blocks": ["BlockPrompts"],
    "bases.base_model": ["BaseModel", "BaseSpec", "learner_state"],
    "bases.learners": ["register_base_learner"],
    "bases.any_model": ["ModelAsBase"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

keep_old_names(__name__)
register_trainer()


def __getattr__(name: str) -> Any:
    """A public name, or a module that used to come with the package, on first use."""
    if name == "config" or name in MOVED:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOME_OF[name]}")
    except ModuleNotFoundError as error:
        if name != "CAPT" or error.name != "dassl":
            raise
        raise ImportError("the trainer CAPT needs dassl; `import capt_compat` first, or install Dassl") from error
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
