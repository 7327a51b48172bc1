"""The node ``TRAINER.CAPT``: every key with its meaning, legal values and source.

Marks: (P) the paper says so, (R) the published repository does so, (D) a decision of this package.
"""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from .backbone.precision import PRECISIONS
from .bases import learners  # noqa: F401 - registers those of this package
from .bases.registry import learner_names
from .method.model import CAPTSettings

__all__ = ["PUBLISHED", "check_capt", "extend_cfg", "settings_from"]

BANK_SOURCES = ("base", "zeroshot", "crossfit")
COUNTS = ("hard", "soft")

# As literal as the paper allows: bank over the full training set, no bank at test, no regulariser of ours.
PUBLISHED: dict[str, Any] = {
    "BANK.SHOTS": -1,
    "BANK.AT_TEST": False,
    "BANK.VIEWS": 1,
    "BANK.NEAR_MISSES": 2.0,
    "SYS.ON": False,
    "SAM.BY_LABEL": False,
    "SAM.LAYOUT": False,
    "SAM.SHRINKAGE": 1.0,
    "MGDE.CORRECTIONS": False,
    "MGDE.EVIDENCE_GATE": False,
    "MGDE.BETA": 1.0,
    "LOSS.BALANCE": 0.0,
    "LOSS.KEEP": 0.0,
}


class _EqualToNode(type):
    """yacs merges a node into one of an equal type only."""

    def __eq__(cls, other: object) -> bool:
        return other is CfgNode or cls is other

    def __hash__(cls) -> int:
        return hash(CfgNode)


class FreeNode(CfgNode, metaclass=_EqualToNode):
    """A node that takes any key, from a yaml and from the command line alike; each new key starts without a type."""

    def __contains__(self, key: object) -> bool:
        """yacs asks for a key before it sets it; names with ``_`` in front are Python's own questions."""
        return not str(key).startswith("_")

    def __missing__(self, key: str) -> None:
        return None


def extend_cfg(cfg: CfgNode) -> None:
    """Add ``TRAINER.CAPT``, ``TRAIN.KEEP`` and, where the host has none, the keys of DATASET and INPUT."""
    if "SUBSAMPLE_CLASSES" not in cfg.DATASET:
        cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    if "PICTURES" not in cfg.setdefault("INPUT", CfgNode()):
        # stored: as CoOp reads; shown: turned as EXIF says, on white; auto: shown for the data set Folder alone (D)
        cfg.INPUT.PICTURES = "auto"
    cfg.TRAIN.KEEP = 2  # states of an unfinished run that are kept: the last, and those before it should it be damaged
    cfg.TRAIN.KEEP_MINUTES = 0.0  # least time between states of epochs; below 0: so long that they take 2 % of it
    node = cfg.TRAINER.CAPT = CfgNode()

    # Precision of the frozen towers: fp16, bf16, fp32, amp. What is trained computes in fp32 always (D).
    node.PREC = "fp16"

    # The base model that CAPT stands on.
    node.BASE = CfgNode()
    node.BASE.NAME = "ZeroshotCLIP"  # a registered base learner; docs/BASES.md
    node.BASE.MODULE = ""  # module or .py file that registers learners, imported before NAME is looked up
    node.BASE.OPTIONS = FreeNode()  # any keys: what the learner needs and no checkpoint holds (MMRL's ALPHA ...)
    node.BASE.DIR = ""  # run folder of that learner; unused by ZeroshotCLIP
    node.BASE.EPOCH = 0  # epoch to load; 0: the best or last that was saved
    node.BASE.TEMPLATE = ""  # ZeroshotCLIP's prompt with {} for the name; "": the data set's own
    node.BASE.CTX_INIT = "a photo of a"  # of MaPLe, IVLP, VPT, PromptSRC; words beyond their N_CTX stay in the prompts
    node.BASE.CLASS_TOKEN_POSITION = "end"  # CoOp's: end, middle, front; its checkpoint does not say

    node.BASE.TEACHER_NAME = "ViT-L/14"  # the CLIP of PromptKD's teacher
    node.BASE.TEACHER_DIR = ""  # its PromptSRC run folder, or checkpoint; "": teacher_model/<DATASET.NAME>

    # Which images choose the epoch where TEST.FINAL_MODEL is best_val: val, or test (R: their test set served as val).
    node.SELECTION = "val"

    # Confusion Bank (P 3.2).
    node.BANK = CfgNode()
    node.BANK.SOURCE = "base"  # who judges: base, zeroshot (the same CLIP, hand-written prompt), crossfit (D)
    node.BANK.SHOTS = 0  # 0: the training images of this run (D); -1: the full training set (R)
    node.BANK.VIEWS = 1  # views of an image that are judged: the test transform, then augmentations (D)
    node.BANK.COUNTS = "hard"  # n[y, t] counts errors; soft adds p_j of every view to n[y, j], j != y (D)
    node.BANK.NEAR_MISSES = 0.0  # also file right views from this confusion intensity on; above 1: errors alone (D)
    node.BANK.FOLDS = 4  # folds of crossfit
    node.BANK.FOLD_CONFIG = ""  # yaml that the base learner of a fold is trained with; crossfit needs it
    node.BANK.AT_TEST = True  # consult the bank at test for the classes it knows (D); it holds training shots only

    # What is common to all confusions, one vector for all images, kept where held-out classes gain by it (D).
    node.SYS = CfgNode()
    node.SYS.ON = True  # False: no shift

    # Semantic Confusion Miner (P 3.2, Eq. 7).
    node.SEM = CfgNode()
    node.SEM.ON = True  # False: the expert sees no prompt features
    node.SEM.NUM_PAIRS = 5  # k, mined pairs a query, >= 1
    node.SEM.SYMMETRIC = False  # also count n[t, j] in Eq. 7 (D)
    node.SEM.PROMPTS = "descriptions"  # folder of prompt files; pairs without any get templates
    node.SEM.MAX_GB = 0.5  # of memory for the features of mined pairs, > 0; 131,000 pairs of ViT-B/16 (D)

    # Sample Confusion Miner (P 3.2, Eq. 8-10, 13).
    node.SAM = CfgNode()
    node.SAM.ON = True  # False: no representatives, no adapter
    node.SAM.ADAPTER = True  # False, and on any ResNet: confusion features are the image features, not adapted (D)
    node.SAM.NUM_REPRESENTATIVES = 8  # K, >= 1
    node.SAM.BY_LABEL = True  # retrieve what is labelled t or a mined j (D); False: the pairs {t, j} alone (P)
    node.SAM.MAX_MB = 256.0  # of memory that a batch's retrieval may take besides the bank, > 0 (D)
    node.SAM.LAYOUT = True  # compare images by the layout of their patch tokens as well, not by class tokens alone (D)
    node.SAM.SHRINKAGE = 0.5  # of the scatter within classes by which images are compared, (0, 1]; 1: plain cosine (D)
    node.SAM.ALPHA = 5.0  # a of alpha = a c^gamma, > 0
    node.SAM.GAMMA = 0.5  # gamma, >= 0

    # Multi-Granularity Discrepancy Expert (P 3.3, Eq. 11).
    node.MGDE = CfgNode()
    node.MGDE.ON = True  # False: as BETA 0, whatever BETA is
    node.MGDE.TOP_K = 2  # experts a query is routed to, 1 to 3 (R: 2)
    node.MGDE.HIDDEN_RATIO = 4  # hidden width of an expert over D (R: 4)
    node.MGDE.DROPOUT = 0.3  # in the experts, [0, 1) (R: 0.3)
    node.MGDE.CENTROIDS = 5  # K-means centroids that the semantic experts start from (R: 5); 0: random start
    # Scale of the experts' residual, z' = norm(z + beta r + corrections), >= 0 (P). Held-out classes choose 0 (D): no
    # experts, no adapter, no L_confuse, nothing that is trained by gradients.
    node.MGDE.BETA = 0.0
    node.MGDE.SHARPNESS = 3.0  # b of exp(-b (1 - cos)), > 0 (D)
    node.MGDE.GAIN = 2.4  # a, how far the corrections move z, at most where it is fitted, >= 0 (D)
    node.MGDE.FIT_GAIN = True  # choose a between 0 and GAIN by leave-one-out on the run's shots (D)
    node.MGDE.CORRECTIONS = True  # representatives pull from their rival's text to their label's (D)
    node.MGDE.EVIDENCE_GATE = True  # experts are silent where the bank knows nothing of a pair (D); SAM.ON only

    # Losses (P Eq. 3-6).
    node.LOSS = CfgNode()
    node.LOSS.CONFUSE = 1.0  # lambda, weight of the symmetric InfoNCE, >= 0; 0 switches it off
    node.LOSS.BALANCE = 0.01  # weight of the router's balance term, >= 0 (D)
    node.LOSS.KEEP = 300.0  # weight of |beta r|^2 / 2, keeps the experts from fitting the shots, >= 0 (D)

    # Features of the frozen base model, computed once per view (D).
    node.CACHE = CfgNode()
    node.CACHE.VIEWS = 4  # views of a training image that are kept, or as many as fit; 0: encode every step, no cache
    node.CACHE.MAX_GB = 8.0  # what the tokens of cache and bank may take; the log says what was done about the rest

    # What a frozen image tower makes of the images, on the disk, shared by all runs and methods that stand on it (D).
    node.CACHE.DISK_GB = 8  # what the files may take, those used longest ago go first; 0: none are written or read
    node.CACHE.DIR = ""  # their folder; "": .capt/features in DATASET.ROOT, or below OUTPUT where that is read-only


def settings_from(node: CfgNode) -> CAPTSettings:
    """The model's settings of a ``TRAINER.CAPT`` node."""
    return CAPTSettings(
        num_pairs=node.SEM.NUM_PAIRS,
        symmetric=node.SEM.SYMMETRIC,
        num_representatives=node.SAM.NUM_REPRESENTATIVES,
        by_label=node.SAM.BY_LABEL,
        max_retrieval_megabytes=node.SAM.get("MAX_MB", CAPTSettings.max_retrieval_megabytes),  # not in older runs
        alpha=node.SAM.ALPHA,
        gamma=node.SAM.GAMMA,
        hidden_ratio=node.MGDE.HIDDEN_RATIO,
        top_k=node.MGDE.TOP_K,
        dropout=node.MGDE.DROPOUT,
        beta=float(node.MGDE.BETA),
        sharpness=node.MGDE.SHARPNESS,
        gain=node.MGDE.GAIN,
        gate_by_evidence=node.MGDE.EVIDENCE_GATE and node.SAM.ON,  # all evidence comes from the samples
        use_sem=node.SEM.ON,
        use_sam=node.SAM.ON,
        use_adapter=node.SAM.get("ADAPTER", True),  # runs from before the key all had it
        use_mgde=node.MGDE.ON and node.MGDE.BETA > 0,
        use_corrections=node.MGDE.CORRECTIONS,
        weight_confuse=node.LOSS.CONFUSE,
        weight_balance=node.LOSS.BALANCE,
        weight_keep=node.LOSS.KEEP,
    )


def check_capt(node: CfgNode) -> None:
    """Refuse a ``TRAINER.CAPT`` node that cannot be run.

    Raises:
        ValueError: lists every key that is out of range, with what it must be.
    """
    problems = [
        f"TRAINER.CAPT.{key} must be {rule}, got {value!r}" for key, value, holds, rule in _rules(node) if not holds
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _rules(node: CfgNode) -> list[tuple[str, Any, bool, str]]:
    def one_of(key: str, value: str, values: tuple[str, ...]) -> tuple[str, Any, bool, str]:
        return key, value, value in values, f"one of {', '.join(values)}"

    def at_least(key: str, value: float, least: float) -> tuple[str, Any, bool, str]:
        return key, value, value >= least, f"at least {least}"

    def positive(key: str, value: float) -> tuple[str, Any, bool, str]:
        return key, value, value > 0, "greater than 0"

    bank, sem, sam, mgde, loss = node.BANK, node.SEM, node.SAM, node.MGDE, node.LOSS
    needs_folds = bank.SOURCE == "crossfit" and node.BASE.NAME != "ZeroshotCLIP"
    return [
        one_of("PREC", node.PREC, PRECISIONS),
        one_of("BASE.NAME", node.BASE.NAME, learner_names()),
        one_of("SELECTION", node.SELECTION, ("val", "test")),
        one_of("BASE.CLASS_TOKEN_POSITION", node.BASE.CLASS_TOKEN_POSITION, ("end", "middle", "front")),
        one_of("BANK.SOURCE", bank.SOURCE, BANK_SOURCES),
        one_of("BANK.COUNTS", bank.COUNTS, COUNTS),
        ("BANK.SHOTS", bank.SHOTS, bank.SHOTS in (0, -1), "0 (the run's own shots) or -1 (the full training set)"),
        at_least("BANK.VIEWS", bank.VIEWS, 1),
        at_least("BANK.NEAR_MISSES", bank.NEAR_MISSES, 0),
        at_least("BANK.FOLDS", bank.FOLDS, 2),
        ("BANK.FOLD_CONFIG", bank.FOLD_CONFIG, bool(bank.FOLD_CONFIG) or not needs_folds, "a yaml for crossfit"),
        at_least("SEM.NUM_PAIRS", sem.NUM_PAIRS, 1),
        positive("SEM.MAX_GB", sem.MAX_GB),
        at_least("SAM.NUM_REPRESENTATIVES", sam.NUM_REPRESENTATIVES, 1),
        positive("SAM.MAX_MB", sam.MAX_MB),
        positive("SAM.ALPHA", sam.ALPHA),
        at_least("SAM.GAMMA", sam.GAMMA, 0),
        ("SAM.SHRINKAGE", sam.SHRINKAGE, 0 < sam.SHRINKAGE <= 1, "in (0, 1]"),
        ("MGDE.TOP_K", mgde.TOP_K, 1 <= mgde.TOP_K <= 3, "1, 2 or 3"),
        at_least("MGDE.HIDDEN_RATIO", mgde.HIDDEN_RATIO, 1),
        ("MGDE.DROPOUT", mgde.DROPOUT, 0 <= mgde.DROPOUT < 1, "in [0, 1)"),
        at_least("MGDE.CENTROIDS", mgde.CENTROIDS, 0),
        at_least("MGDE.BETA", mgde.BETA, 0),
        positive("MGDE.SHARPNESS", mgde.SHARPNESS),
        at_least("MGDE.GAIN", mgde.GAIN, 0),
        at_least("LOSS.CONFUSE", loss.CONFUSE, 0),
        at_least("LOSS.BALANCE", loss.BALANCE, 0),
        at_least("LOSS.KEEP", loss.KEEP, 0),
        at_least("CACHE.VIEWS", node.CACHE.VIEWS, 0),
        at_least("CACHE.DISK_GB", node.CACHE.DISK_GB, 0),
    ]
