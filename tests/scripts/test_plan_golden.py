"""The shell scripts print, start, refuse and end to the byte as they did when all of this was written in shell."""

from __future__ import annotations

import pytest
from plan_cases import all_cases, answer, load, make_checkout

pytestmark = pytest.mark.regression

CASES = all_cases()
STORED = load()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("checkout"))


def test_every_case_has_its_answer():
    assert [case.name for case in CASES] == list(STORED)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_as_ever(case, checkout, tmp_path):
    assert answer(case, checkout, tmp_path) == STORED[case.name]
