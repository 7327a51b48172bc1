"""The table of what CAPT adds to its base learners, from records worked by hand."""

import json

import gain_over_base
import pytest


def _leave(folder, half, seed, before, after, net=None, trainer="CAPT"):
    confusion = {"base_accuracy": before, "base_mean_per_class_accuracy": before - 1.0}
    confusion |= dict.fromkeys(("resolved", "introduced", "net"), net)
    record = {"trainer": trainer, "subsample": half, "dataset": "Glyphs", "shots": 16, "base": "CoOp", "seed": seed}
    record |= {"accuracy": after, "mean_per_class_accuracy": after, "confusion": confusion}
    place = folder / trainer / half / f"seed{seed}"
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(record))


def test_gains_are_paired_by_seed_and_shares_leave_out_runs_without_confusion(tmp_path):
    for seed, after, net in ((1, 62.0, 10.0), (2, 64.0, None)):
        _leave(tmp_path, "base", seed, 60.0, after, net)
        _leave(tmp_path, "new", seed, 30.0, 30.0)
    _leave(tmp_path, "base", 3, 60.0, 99.0)  # its new half is missing
    _leave(tmp_path, "base", 1, 60.0, 99.0, trainer="CoOp")
    ((key, halves),) = gain_over_base.records([tmp_path]).items()
    name, shots, base, seeds, *gains, resolved, introduced, net, net_new = gain_over_base.row(key, halves)
    assert (name, shots, base, seeds) == ("Glyphs", 16, "CoOp", 2)
    harmonic = [2 * a * 30 / (a + 30) - 40 for a in (62.0, 64.0)]
    error = abs(harmonic[0] - harmonic[1]) / 2
    expected = ["+3.00 ± 1.00", "+4.00 ± 1.00", "+0.00 ± 0.00", f"{sum(harmonic) / 2:+.2f} ± {error:.2f}"]
    assert gains == expected
    assert (resolved, introduced, net) == (10.0, 10.0, 10.0)
    assert net_new != net_new  # nan: no run has a pair to resolve


def test_one_seed_has_no_error():
    assert gain_over_base.paired([2.5]) == "+2.50 ± nan"


def test_the_command(tmp_path, capsys):
    assert gain_over_base.main([str(tmp_path)]) == 2
    assert "error: no run of CAPT" in capsys.readouterr().err
    _leave(tmp_path, "base", 1, 60.0, 62.0)
    _leave(tmp_path, "new", 1, 30.0, 31.0)
    assert gain_over_base.main([str(tmp_path)]) == 0
    assert "| Glyphs |" in capsys.readouterr().out


@pytest.mark.parametrize(("a", "b", "mean"), [(50.0, 50.0, 50.0), (100.0, 50.0, 200 / 3)])
def test_the_harmonic_mean(a, b, mean):
    assert gain_over_base.harmonic(a, b) == pytest.approx(mean)
