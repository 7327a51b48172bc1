"""Makes ``import dassl`` work: the installed Dassl, else the bundled subset.

Use it once, before anything that imports Dassl::

    import compat  # noqa: F401
    from dassl.engine import build_trainer

``compat.DASSL`` says which one is in use: ``"installed"`` or ``"bundled"``. An installed Dassl always wins; where it
cannot work on the current torch, ``compat.repairs`` mends it in memory and says so on stdout. The bundled subset is
an independent implementation of the surface that CoOp-style code uses (see compat/README.md).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .postponed import postpone
from .stand_ins import stand_in_for_absent_packages

__all__ = ["BUNDLED_PATH", "DASSL"]

BUNDLED_PATH = Path(__file__).resolve().parent / "bundled"


def _locate() -> Path | None:
    """Folder of the ``dassl`` package that an import would find now, None without one."""
    if "dassl" in sys.modules:
        origin = getattr(sys.modules["dassl"], "__file__", None)
    else:
        spec = importlib.util.find_spec("dassl")
        # A folder called dassl without __init__.py (say, a data folder) is found as a namespace package: not Dassl.
        origin = spec.origin if spec is not None else None
    return Path(origin).resolve().parent if origin else None


def _choose() -> str:
    """Put the bundled subset on ``sys.path`` if no Dassl can be found; return which one is in use."""
    found = _locate()
    if found is None:
        sys.path.append(str(BUNDLED_PATH))
        importlib.invalidate_caches()
        found = _locate()
    assert found is not None, f"no Dassl under {BUNDLED_PATH}"
    # This package's, or that of another copy of it: a checkout has compat, an installed plugin capt_compat.
    if found.parent.name == "bundled" and (found.parents[1] / "repairs.py").is_file():
        return "bundled"
    from .repairs import repair_installed_dassl

    repair_installed_dassl()
    return "installed"


stand_in_for_absent_packages()
postpone()
DASSL: str = _choose()
