"""The processes of a run: who speaks, what they tell each other, and devices of their own."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import together  # noqa: E402

from trainers.capt.run import distributed  # noqa: E402
from trainers.capt.run.distributed import (  # noqa: E402
    PeerLostError,
    collective,
    from_first,
    gather,
    has_failed,
    highest,
    is_first,
    is_told_elsewhere,
    joined,
    quiet_unless_first,
    rank,
    sum_over,
    take_device,
    wait_for_all,
    world,
)
from trainers.capt.run.files import write_json  # noqa: E402
from trainers.capt.run.lock import hold_folder  # noqa: E402
from trainers.capt.run.states import drop_states, rng_state, set_rng_state  # noqa: E402


def test_one_process_does_nothing(capsys):
    value, x = object(), torch.ones(2)
    with joined(), quiet_unless_first():
        print("heard")
        assert (world(), rank(), is_first(), has_failed()) == (1, 0, True, False)
        assert gather(value) == [value]
        assert from_first(value) is value
        assert sum_over(x) is x
        assert highest(3) == 3
        wait_for_all()
        assert not is_told_elsewhere(ValueError())
    assert x.tolist() == [1, 1]
    assert capsys.readouterr().out == "heard\n"


def test_torchruns_single_process_joins_nobody(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined():
        assert world() == 1


def test_what_processes_tell_each_other(tmp_path):
    def told():
        number = rank()
        return {
            "who": (world(), number, is_first()),
            "gathered": gather((number, torch.full((number + 1,), 7.0))),
            "first": from_first(f"from {number}"),
            "sum": sum_over(torch.tensor([1.0, number])).tolist(),
            "highest": highest([0, 15][number]),
        }

    for number, found in enumerate(together(2, told, tmp_path)):
        assert found["who"] == (2, number, number == 0)
        assert [(i, x.tolist()) for i, x in found["gathered"]] == [(0, [7.0]), (1, [7.0, 7.0])]
        assert (found["first"], found["sum"], found["highest"]) == ("from 0", [2.0, 1.0], 15)
    assert world() == 1  # the forks' affair


def test_the_first_process_alone_writes_locks_and_removes(tmp_path):
    shared = tmp_path / "shared"
    (shared / "resume").mkdir(parents=True)

    def write():
        with hold_folder(shared):
            write_json(shared / f"by_{rank()}.json", rank())
            wait_for_all()
            found = sorted(path.name for path in shared.iterdir())
            wait_for_all()
            if rank() == 1:
                drop_states(shared)
            wait_for_all()
            still = (shared / "resume").is_dir()
            wait_for_all()
            drop_states(shared)
            wait_for_all()
            with quiet_unless_first():
                print("I am", rank())
            return found, still, (shared / "resume").is_dir()

    for found in together(2, write, tmp_path):
        assert found == ([".run.lock", "by_0.json", "resume"], True, False)
    assert (tmp_path / "printed0").read_text() == "I am 0\n"
    assert (tmp_path / "printed1").read_text() == ""


def test_random_states_are_taken_from_the_first(tmp_path):
    def drawn():
        torch.manual_seed(rank())
        set_rng_state(from_first(rng_state()))
        return torch.rand(3), torch.initial_seed()

    one, two = together(2, drawn, tmp_path)
    assert torch.equal(one[0], two[0])
    assert (one[1], two[1]) == (0, 0)


def test_the_first_error_is_told_by_one(tmp_path):
    def failed():
        told = is_told_elsewhere(ValueError("both"))
        wait_for_all()
        return told, has_failed()

    assert sorted(together(2, failed, tmp_path)) == [(False, True), (True, True)]


def test_what_all_do_together_says_when_somebody_is_gone():
    def refuse():
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(PeerLostError, match="another process of this run is gone; the same command goes on") as error:
        collective(refuse)
    assert "closed by peer" in str(error.value.__cause__)


@pytest.mark.parametrize(("use_cuda", "local", "taken"), [(True, 1, [1]), (False, 1, []), (False, 5, [])])
def test_each_process_takes_a_gpu_of_its_own(use_cuda, local, taken, monkeypatch):
    seen = fake_gpus(monkeypatch, local)
    take_device(use_cuda)
    assert seen == taken


def test_more_processes_than_gpus_are_refused(monkeypatch):
    fake_gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match="more processes than GPUs, of which 2 can be seen; start 2 .--nproc., or"):
        take_device(True)


def fake_gpus(monkeypatch, local):
    seen = []
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    return seen
