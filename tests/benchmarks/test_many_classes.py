"""1,000 classes x 2 pictures, with experts and without: time and memory to the first step, and how they grow."""

import json

import classes
import pytest

OPTIONS = {"experts": ["TRAINER.CAPT.MGDE.BETA", "0.1"], "default": []}


@pytest.mark.slow
@pytest.mark.parametrize("strength", OPTIONS)
def test_a_thousand_classes_cost_at_most_four_times_as_much_as_250(tmp_path, strength):
    """From start to first step, in seconds of CPU."""
    path = tmp_path / "classes.json"
    more = ["--opts", *OPTIONS[strength]] if OPTIONS[strength] else []
    assert classes.main(["--classes", "250", "1000", "--device", "cpu", "--output", str(path), *more]) == 0
    few, many = json.loads(path.read_text())["figures"]
    assert ("first step" in many["phases"]) == (strength == "experts")
    assert many["until_first_step_cpu_s"] < 30
    assert many["until_first_step_mb"] < 1500
    assert many["until_first_step_cpu_s"] < 4 * few["until_first_step_cpu_s"]
    assert many["until_first_step_mb"] < 4 * few["until_first_step_mb"]
