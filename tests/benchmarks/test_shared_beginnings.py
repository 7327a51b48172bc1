"""Both ways are run, and shared is shared."""

import shared_beginnings
import torch

from trainers.capt.backbone import prompted_clip


def test_every_case_is_timed_both_ways(capsys, monkeypatch):
    calls, own = [], prompted_clip.run_sharing
    monkeypatch.setattr(prompted_clip, "run_sharing", lambda *parts: calls.append(parts[1].shape[1]) or own(*parts))
    threads = torch.get_num_threads()
    try:
        assert shared_beginnings.main(["--width", "16", "--blocks", "1", "--turns", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert calls == [begins for _, _, begins in shared_beginnings.CASES for _ in range(2)]
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(shared_beginnings.CASES)
