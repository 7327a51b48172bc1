"""Random states of a process as plain tensors, so that a checkpoint holding them loads with ``weights_only=True``."""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "set_rng_state"]


def get_rng_state() -> dict[str, Any]:
    """Return the states of ``random``, ``numpy.random``, ``torch`` and every GPU that has been used."""
    version, words, gauss = random.getstate()
    state = np.random.get_state()  # noqa: NPY002
    assert isinstance(state, tuple)
    _, keys, position, has_gauss, cached = state
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Bring the generators back to a state from ``get_rng_state``.

    GPU states are restored if there are as many GPUs as when they were saved; otherwise this is said and left out.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    cuda = [s.cpu() for s in state["cuda"]]
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    elif cuda:
        print(f"Random states of {len(cuda)} GPUs in the checkpoint do not fit this machine and are not restored")
