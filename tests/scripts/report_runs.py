"""Run folders as a trainer leaves them, of made-up predictions, for tests of the report."""

import json

import numpy as np
from PIL import Image

from trainers.capt.run.metrics import accuracies, confusion_report


def write_run(folder, labels, predictions, base=None, classnames=None, root=None, **record):
    """``results.json`` and ``predictions.npz`` with confidences that lead to ``predictions``.

    Args:
        folder: run folder.
        labels: ``(M,)``.
        predictions: ``(M,)`` top classes.
        base: ``(M,)`` those of a base model, or None.
        classnames: C names.
        root: folder to draw a small picture for each image in; None draws none.
        record: entries of ``results.json`` to replace.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    classnames = classnames or [f"class {c}" for c in range(int(max(labels.max(), predictions.max())) + 1)]
    paths = [f"{label}/{place:05d}.png" for place, label in enumerate(labels)]
    arrays = {"labels": labels, "probs": confidences(predictions, len(classnames)), "impaths": np.array(paths)}
    confusion = None
    if base is not None:
        arrays["base_probs"] = confidences(np.asarray(base), len(classnames))
        confusion = confusion_report(labels, base, predictions, len(classnames)).to_dict()
        plain, per_class = accuracies(labels, np.asarray(base))
        confusion |= {"base_accuracy": plain, "base_mean_per_class_accuracy": per_class}
    plain, per_class = accuracies(labels, predictions)
    content = {
        **{"format": 1, "commit": "0123456789ab", "trainer": "MaPLe", "base": None, "dataset": "Made"},
        **{"split": "test", "subsample": "all", "shots": 4, "seed": 1, "backbone": "ViT-B/16"},
        **{"protocol": "4 shots, all classes", "transductive": False, "selection": "last_step", "epoch": 5},
        **{"classnames": classnames, "num_classes": len(classnames), "num_train": 4 * len(classnames)},
        **{"num_test": len(labels), "accuracy": plain, "mean_per_class_accuracy": per_class, "macro_f1": 50.0},
        **{"confusion": confusion, "device": "cpu", "config": {"DATASET": {"ROOT": str(root or "gone")}}},
        **record,
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "predictions.npz", **arrays)
    (folder / "results.json").write_text(json.dumps(content))
    if root is not None:
        draw(root, paths)
    return folder


def confidences(predictions, num_classes, seed=0):
    """``(M, C)`` float32 rows that sum to 1, largest at the prediction."""
    probs = np.random.RandomState(seed).rand(len(predictions), num_classes).astype(np.float32)
    probs[np.arange(len(predictions)), predictions] = 1.5
    return probs / probs.sum(axis=1, keepdims=True)


def draw(root, paths):
    source = np.random.RandomState(1)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.randint(0, 255, (24, 32, 3), dtype=np.uint8)).save(root / path)


def page_data(page):
    """What the page holds, from the text of the file."""
    return json.loads(page.split('id="data">')[1].split("</script>")[0])
