"""Repairs of an installed Dassl, each tried on a stand-in for what it mends."""

import importlib.util
import sys

from compat import repairs

import numpy as np
import pytest

AUGMENTS = """\
import numpy as np


def brighter(pixels, more):
    return np.clip(np.array(pixels).astype(np.int) + more, 0, 255)


def noise():
    return np.random.rand(2)
"""


@pytest.fixture
def augments(tmp_path, monkeypatch):
    """``dassl.data.transforms.<name>`` from source, as an installed Dassl has it."""

    def load(source, name="randaugment"):
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"dassl.data.transforms.{name}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.skipif(hasattr(np, "int"), reason="this numpy still has np.int")
def test_numpys_lost_name_is_given_back_to_whoever_writes_it(augments):
    asking = augments(AUGMENTS)
    other = augments("import numpy as np\n\ndef zero():\n    return np.int64(0)\n", "autoaugment")
    with pytest.raises(AttributeError, match=r"np\.int"):
        asking.brighter([0, 250], 20)
    assert "np.int" in repairs._give_back_int()
    np.testing.assert_array_equal(asking.brighter([0, 250], 20), [20, 255])
    assert asking.noise().shape == (2,)  # all the rest of numpy is numpy's
    assert asking.np.random is np.random
    assert other.np is np
    assert not hasattr(np, "int")
    assert repairs._give_back_int() is None  # once is enough


def test_nothing_is_said_where_nobody_writes_it(augments):
    augments("import numpy as np\n")
    assert repairs._give_back_int() is None
