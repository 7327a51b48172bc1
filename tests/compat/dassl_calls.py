"""What the plugin calls of Dassl, and what the Dassls that hosts bring take; both read from source, nothing imported.

python tests/compat/dassl_calls.py FOLDER_OF_PEERS     # writes the signatures down anew
"""

import ast
import inspect
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "trainers" / "capt"
STORED = Path(__file__).with_name("dassl_signatures.json")

# Folder of each Dassl below a folder of peers; older versions lie there as dassl_versions/<version>.
COPIES = {
    "0.4.3": "dassl_versions/0.4.3",
    "0.5.0": "dassl_versions/0.5.0",
    "0.6.0": "dassl_versions/0.6.0",
    "0.6.1": "dassl_versions/0.6.1",
    "0.6.3": "KaiyangZhou+Dassl.pytorch",
    "KgCoOp": "htyao89+KgCoOp/Dassl.ProGrad.pytorch",
    "ProGrad": "BeierZhu+Prompt-align/Dassl.ProGrad.pytorch",
    "BiomedCoOp": "HealthX-Lab+BiomedCoOp/Dassl.pytorch",
    "PromptKD": "zhengli97+PromptKD/Dassl.pytorch",
    "DPC": "JREion+DPC/Dassl.pytorch",
    "FVG-PT": "JREion+FVG-PT/Dassl.pytorch",
    "CAPT": "greatest-gourmet+CAPT/Dassl.pytorch",
    "ATPrompt": "zhengli97+ATPrompt/Dassl.pytorch",
    "ProText": "muzairkhattak+ProText/Dassl.pytorch",
    "baple": "asif-hanif+baple/Dassl.pytorch",
    "LightRA": "longinhit+LightRA",  # its data/ folder was never committed
}
# What is called -> where it is defined: file, and class or classes in the order of inheritance.
TRAINER = ("engine/trainer.py", "TrainerX", "SimpleTrainer", "TrainerBase")
HOOKS = "before_train before_epoch run_epoch after_epoch after_train train save_model register_model update_lr"
HOOKS += " detect_anomaly set_model_mode parse_batch_test write_scalar"
HOMES = {
    **{f"TrainerX.{name}": TRAINER for name in HOOKS.split()},
    **{f"evaluator.{name}": ("evaluation/evaluator.py", "Classification") for name in ("reset", "process", "evaluate")},
    **{f"TRAINER_REGISTRY.{n}": ("utils/registry.py", "Registry") for n in ("register", "get", "registered_names")},
    "build_optimizer": ("optim/optimizer.py",),
    "build_lr_scheduler": ("optim/lr_scheduler.py",),
    "build_data_loader": ("data/data_manager.py",),
    "build_dataset": ("data/datasets/build.py",),
}


def plugin_calls():
    """``(name, number of positional arguments, names of keyword arguments, file)`` of every call into Dassl."""
    return sorted({call for path in sorted(PLUGIN.rglob("*.py")) for call in _calls_in(path)})


def _calls_in(path):
    tree = ast.parse(path.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dassl"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _name_of(node.func, imported)
        if name:
            keywords = tuple(sorted(k.arg for k in node.keywords if k.arg))
            yield name, len(node.args), keywords, path.name


def _name_of(function, imported):
    """Under which name of ``HOMES`` a call goes, None where it is none of Dassl's."""
    text = ast.unparse(function)
    owner, _, attribute = text.rpartition(".")
    if text in imported:
        return text
    if owner == "TRAINER_REGISTRY":
        return text
    if owner == "self.evaluator":
        return f"evaluator.{attribute}"
    if owner in ("super()", "self", "trainer") and f"TrainerX.{attribute}" in HOMES:
        return f"TrainerX.{attribute}"
    return None


def signatures_of(dassl):
    """Name -> text of its parameters, in the Dassl of this folder; "" where it has no such thing."""
    return {name: _parameters(Path(dassl) / "dassl", *home, name.rpartition(".")[2]) for name, home in HOMES.items()}


def _parameters(folder, file, *classes_and_name):
    *classes, name = classes_and_name
    if not (folder / file).is_file():
        return ""
    tree = ast.parse((folder / file).read_text())
    bodies = [node.body for cls in classes for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls]
    for body in bodies if classes else [tree.body]:
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return ast.unparse(node.args)
    return ""


def signature(parameters):
    """``inspect.Signature`` of what :func:`signatures_of` gives."""
    scope = {}
    exec(f"def function({parameters}): pass", scope)
    return inspect.signature(scope["function"])


def main(peers):
    found = {name: signatures_of(Path(peers) / folder) for name, folder in COPIES.items()}
    # One entry for all Dassls that agree.
    merged = {}
    for call in HOMES:
        texts = {}
        for name in COPIES:
            texts.setdefault(found[name][call], []).append(name)
        merged[call] = {" ".join(names): text for text, names in texts.items()}
    STORED.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
