"""1,000 classes x 2 pictures, with experts and without: time and memory to the first step, and how they grow."""

import json

import classes
import pytest

OPTIONS = {"experts": ["TRAINER.CAPT.MGDE.BETA", "0.1"], "default": []}


@pytest.mark.slow
@pytest.mark.parametrize("strength", OPTIONS)
def test_a_thousand_classes_cost_at_most_four_times_as_much_as_250(tmp_path, strength):
    """In seconds of CPU, which other jobs change little; imports are the same for any number.

    The fit of a shift holds some tables of images and classes, which have sixteen times as many numbers here and are
    bounded by themselves (method/systematic.py, MAX_CELLS); its memory is held to the sum alone.
    """
    path = tmp_path / "classes.json"
    more = ["--opts", *OPTIONS[strength]] if OPTIONS[strength] else []
    assert classes.main(["--classes", "250", "1000", "--device", "cpu", "--output", str(path), *more]) == 0
    few, many = json.loads(path.read_text())["figures"]
    assert ("first step" in many["phases"]) == (strength == "experts")
    assert many["until_first_step_cpu_s"] < 30
    assert many["until_first_step_mb"] < 1500
    seconds = [run["until_first_step_cpu_s"] - run["phases"]["imports"]["cpu_s"] for run in (few, many)]
    assert seconds[1] < 4.4 * seconds[0]
    memory = [max(phase["mb"] for name, phase in run["phases"].items() if name != "shift") for run in (few, many)]
    assert memory[1] < 4.4 * memory[0]
