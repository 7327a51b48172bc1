"""Jobs of Slurm, without one: what is handed to sbatch, squeue and scancel, what a job does, what is found again."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="the extra sweep is not installed")

import submitit  # noqa: E402

from capt_tools.plan.steps import StopError  # noqa: E402
from capt_tools.sweep import main, slurm  # noqa: E402
from capt_tools.sweep.job import held_back, run_cells  # noqa: E402
from capt_tools.sweep.slurm import Queued, Work, minutes  # noqa: E402
from capt_tools.sweep.state import Record, Sweep  # noqa: E402
from capt_tools.sweep.status import standings  # noqa: E402

GRID = ["--methods", "coop capt:CoOp", "--datasets", "dtd", "--seeds", "1 2", "--cluster", "slurm"]
# Each notes how it was called. sbatch numbers its jobs from 101 on; squeue says what the file queue holds.
FAKES = {
    "sbatch": 'n=$(wc -l <"$FAKE/sbatch"); echo "Submitted batch job $((100 + n))"; cp "$1" "$FAKE/$((100 + n)).sh"',
    "squeue": '[[ -f $FAKE/queue ]] || exit 0; cat "$FAKE/queue"',
    "scancel": "true",
    "srun": "true",
}


@pytest.fixture
def fake(tmp_path, monkeypatch, stub):
    """A folder for the calls, with Slurm's commands on the path."""
    (tmp_path / "bin").mkdir()
    for name, does in FAKES.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/bash\n[[ ! -f $FAKE/down ]] || {{ echo "{name}: error: no" >&2; exit 1; }}\n')
        path.write_text(path.read_text() + f'echo "$*" >>"$FAKE/{name}"\n{does}\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    return tmp_path


def options(path):
    """What a job's script asks sbatch for."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", path.read_text(), re.MULTILINE))


def queue(fake, *jobs):
    (fake / "queue").write_text(
        "".join(f"{job}|{state}|{reason}|1:00:00|{name}\n" for job, state, reason, name in jobs)
    )


def finish(sweep, *numbers):
    for node in (sweep.nodes()[number] for number in numbers):
        for folder in node.folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, "results.json").write_text("{}")


def sent():
    return Sweep.find(os.environ["OUTPUT"], "base2new")


# What is sent


def test_arrays_and_what_they_wait_for(fake, capsys):
    flags = "--partition gpu --time 1-12 --gpus 2 --cpus 6 --mem 24G --account lab --constraint a100 --qos low"
    assert main(["submit", *GRID, *flags.split(), "--at-once", "8", "--sbatch", "nice=100", "exclude=n1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Sent 4 jobs: 101_0 101_1 102 103\n")
    first, second, third = (options(fake / f"{job}.sh") for job in (101, 102, 103))
    assert first["array"] == "0-1%2"
    assert "dependency" not in first
    assert (second["dependency"], third["dependency"]) == ("afterany:101_0", "afterany:101_1")
    for found in (first, second, third):
        wanted = {"partition": "gpu", "time": "2160", "gpus-per-node": "2", "cpus-per-task": "6", "mem": "24G"}
        wanted |= {"account": "lab", "constraint": "a100", "qos": "low", "nice": "100", "exclude": "n1"}
        assert found.items() >= wanted.items()
        assert found["signal"] == "USR2@90"
    assert sent().jobs == {
        "coop_dtd_1": "101_0",
        "coop_dtd_2": "101_1",
        "capt-CoOp_dtd_1": "102",
        "capt-CoOp_dtd_2": "103",
    }
    assert sent().sending == {}
    work = submitit.core.utils.DelayedSubmission.load(sent().folder / "slurm" / "101_1_submitted.pkl")
    assert (work.function.folder, work.args) == (str(sent().folder), (["coop_dtd_2"],))


def test_a_run_of_two_processes_asks_for_two_gpus(fake):
    small = ["submit", "--methods", "zsclip", "--datasets", "dtd", "--seeds", "1", "--cluster", "slurm", "--nproc", "2"]
    assert main(small) == 0
    assert options(fake / "101.sh")["gpus-per-node"] == "2"
    assert sent().settings.processes == 2


def test_what_is_not_asked_for_is_left_to_the_cluster(fake):
    assert (
        main(
            ["submit", "--methods", "zsclip", "--datasets", "dtd", "--seeds", "1", "--cluster", "slurm", "--gpus", "0"]
        )
        == 0
    )
    found = options(fake / "101.sh")
    assert found["time"] == "240"
    assert not {"gpus-per-node", "cpus-per-task", "mem", "partition", "account", "array", "dependency"} & set(found)


def test_one_job_takes_all_methods_of_a_seed(fake, capsys):
    assert main(["submit", *GRID, "--per-job", "2"]) == 0
    assert capsys.readouterr().out.startswith("Sent 2 jobs: 101_0 101_1\n")
    assert sent().jobs["capt-CoOp_dtd_2"] == sent().jobs["coop_dtd_2"] == "101_1"


def test_jobs_find_this_code_from_any_folder(fake, monkeypatch):
    seen = []
    monkeypatch.setattr(
        slurm.submitit.AutoExecutor, "map_array", lambda self, work, cells: seen.append(os.environ["PYTHONPATH"]) or []
    )
    monkeypatch.setenv("PYTHONPATH", "/mine")
    with pytest.raises(ValueError, match="shorter"):  # the stand-in sends nothing
        main(["submit", *GRID])
    assert seen == [f"{slurm.ROOT}:/mine"]
    assert os.environ["PYTHONPATH"] == "/mine"


def test_a_second_call_sends_what_failed_and_what_is_new_alone(fake, capsys):
    main(["submit", *GRID])
    sweep = sent()
    finish(sweep, 0)
    sweep.note(sweep.cells[2], Record("failed", "error: x"))
    queue(fake, ("102", "PENDING", "Priority", "x"))  # coop's seed 1 is done, its seed 2 has failed, and CAPT on that
    capsys.readouterr()
    assert main(["submit", *GRID, "--datasets", "dtd eurosat", "--methods", "coop capt:CoOp"]) == 0
    new = sent()
    assert capsys.readouterr().out.startswith("Sent 6 jobs: ")
    assert new.jobs["capt-CoOp_dtd_1"] == "102"
    assert new.jobs["coop_dtd_1"] == "101_0"
    assert new.jobs["coop_dtd_2"] == "104_0"
    assert options(fake / "105.sh")["dependency"] == "afterany:104_0"
    assert new.record(sweep.cells[2]) is None


def test_what_waits_already_is_waited_for(fake):
    argv = ["submit", "--datasets", "dtd", "--seeds", "1", "--cluster", "slurm", "--methods"]
    main([*argv, "coop"])
    queue(fake, ("101", "RUNNING", "None", "x"))
    main([*argv, "capt:CoOp"])
    assert options(fake / "102.sh")["dependency"] == "afterany:101"


def test_a_killed_client_finds_what_it_had_sent(fake, monkeypatch):
    class KilledError(Exception):
        pass

    def kill(*args, **keys):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(submitit.core.core.Job, "job_id", property(kill))
        with pytest.raises(KilledError):
            main(["submit", *GRID])
    assert sent().jobs == {}
    name = sent().sending["name"]
    folder = sent().folder / "slurm"
    assert not list(folder.glob("101_*_submitted.pkl"))
    queue(
        fake,
        ("101_0", "PENDING", "Priority", name),
        ("101_1", "PENDING", "Priority", name),
        ("7", "RUNNING", "None", "x"),
    )
    (folder / "101_0_submitted.pkl").touch()
    assert main(["submit", *GRID]) == 0
    assert (fake / "scancel").read_text() == "101_1\n"  # it was not told what to do
    assert sent().jobs["coop_dtd_1"] == "101_0"
    assert sent().jobs["coop_dtd_2"] == "103"
    assert options(fake / "102.sh")["dependency"] == "afterany:101_0"
    assert sent().sending == {}


def test_slurm_that_is_not_there_or_refuses_is_one_line(fake, capsys, monkeypatch):
    (fake / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n"
    )
    assert main(["submit", *GRID, "--partition", "gpu"]) == 2
    assert "error: Slurm refuses: sbatch: error: invalid partition specified: gpu" in capsys.readouterr().err
    (fake / "down").touch()
    assert main(["status"]) == 2
    assert capsys.readouterr().err == "error: Slurm does not answer: squeue: error: no\n"
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert main(["submit", *GRID]) == 2
    line = "error: no Slurm here: squeue is not found; take --cluster local, or a login node\n"
    assert capsys.readouterr().err == line


def test_submitit_that_is_missing_is_one_line_and_local_needs_none(stub, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "capt_tools.sweep.slurm", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "capt_tools.sweep.slurm")
    monkeypatch.delattr("capt_tools.sweep.slurm", raising=False)
    assert main(["submit", *GRID]) == 2
    assert capsys.readouterr().err == "error: submitit is missing; pip install '.[sweep]'\n"
    assert main(["submit", *GRID[:-1], "local"]) == 0


@pytest.mark.parametrize(
    ("time", "wanted"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("0:0:1", 1), ("1-12", 2160), ("1-12:30", 2190), ("2-0:0:59", 2881)],
)
def test_times_are_those_of_slurm(time, wanted):
    assert minutes(time) == wanted


@pytest.mark.parametrize("time", ["", "an hour", "1:2:3:4", "-1", "1h", "1-"])
def test_other_times_are_refused(time):
    with pytest.raises(StopError, match="--time is minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, got"):
        minutes(time)


# How it stands


def test_status_says_what_each_cell_does(fake, capsys):
    main(["submit", *GRID])
    sweep = sent()
    finish(sweep, 0)
    sweep.note(sweep.cells[1], Record("running"))
    folder = Path(sweep.nodes()[1].folders[-2])
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(
        "epoch [3/20] batch [1/2] loss 1 lr 2 eta 0:01:02\nepoch [4/20] batch [2/2] loss 1 lr 2 eta 0:00:58\n"
    )
    queued = {
        "102": Queued("RUNNING", "None", "3:59:00", "x"),
        "101_1": Queued("PENDING", "Resources", "4:00:00", "x"),
        "103": Queued("PENDING", "Dependency", "4:00:00", "x"),
    }
    assert standings(sweep, sweep.nodes(), queued) == [
        ("done", ""),
        ("running", "run 1 of 2, epoch 4/20, 0:00:58 left (job 102, at most 3:59:00 more)"),
        ("waiting", "for Resources (job 101_1)"),
        ("waiting", "for coop dtd seed 2 (job 103)"),
    ]
    again = folder / "log.txt-2026-11-26-11-20-00"  # the run goes on, and Dassl keeps its first log
    again.write_text("epoch [5/20] batch [1/2] loss 1 lr 2 eta 0:00:40\n")
    os.utime(folder / "log.txt", (1, 1))
    assert standings(sweep, sweep.nodes(), queued)[1].detail.startswith("run 1 of 2, epoch 5/20, 0:00:40 left (job 102")
    sweep.note(sweep.cells[2], Record("interrupted", "saved"))
    queued["101_1"] = Queued("PENDING", "BeginTime", "4:00:00", "x")
    assert standings(sweep, sweep.nodes(), queued)[2] == ("waiting", "to go on, for BeginTime (job 101_1)")
    queued["103"] = Queued("PENDING", "None", "4:00:00", "x")
    assert standings(sweep, sweep.nodes(), queued)[3] == ("waiting", "for its turn (job 103)")
    sweep.note(sweep.cells[1], Record("failed", "error: x"))
    (sweep.folder / "slurm" / "101_1_0_log.out").write_text("a\nslurmstepd: error: out of memory\n")
    sweep.note(sweep.cells[2], Record("running"))
    gone = standings(sweep, sweep.nodes(), {})
    assert gone[1:] == [
        ("failed", "error: x"),
        ("failed", "slurmstepd: error: out of memory"),
        ("failed", "job 103 has left no log"),
    ]
    capsys.readouterr()
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 cells: 1 done, 3 failed"


def test_a_cell_behind_others_in_its_job_waits_for_its_turn(fake):
    main(["submit", *GRID, "--per-job", "2"])
    sweep = sent()
    sweep.note(sweep.cells[0], Record("running"))
    queued = {"101_0": Queued("RUNNING", "None", "1:00", "x"), "101_1": Queued("COMPLETING", "None", "1:00", "x")}
    assert standings(sweep, sweep.nodes(), queued)[:2] == [
        ("running", "run 1 of 2 (job 101_0, at most 1:00 more)"),
        ("waiting", "for its turn in job 101_0"),
    ]
    sweep.note(sweep.cells[0], Record("failed", "error: x"))
    sweep.note(sweep.cells[1], Record("interrupted", "saved"))  # the job has just begun again
    assert standings(sweep, sweep.nodes(), queued)[:2] == [
        ("failed", "error: x"),
        ("waiting", "to go on, for its turn in job 101_0"),
    ]


def test_cancel_takes_what_waits_and_runs_out_of_the_queue(fake, capsys):
    main(["submit", *GRID])
    finish(sent(), 0)
    queue(fake, ("101_1", "RUNNING", "None", "x"), ("103", "PENDING", "Dependency", "x"), ("9", "RUNNING", "None", "y"))
    capsys.readouterr()
    assert main(["cancel"]) == 0
    assert capsys.readouterr().out == "Told to stop: 101_1 103\n"
    assert (fake / "scancel").read_text() == "101_1 103\n"
    (fake / "queue").unlink()
    states = [state for state, _ in standings(sent(), sent().nodes(), {})]
    assert states == ["done", "failed", "cancelled", "cancelled"]  # CAPT's job of seed 1 was not in the queue
    assert main(["cancel"]) == 0
    assert capsys.readouterr().out == "Nothing waits or runs\n"


# What a job does


def test_a_job_does_its_cells_in_order(make, journal):
    sweep = make("coop capt:CoOp")
    sweep.save()
    assert run_cells(sweep, ["coop_dtd_1", "capt-CoOp_dtd_1"]) == (0, None)
    assert [word for word, *_ in journal()] == ["begin", "end"] * 4
    assert [sweep.record(cell) for cell in sweep.cells] == [None, None]
    assert "Run this job and save" in sweep.log(sweep.cells[1]).read_text()
    assert run_cells(sweep, ["coop_dtd_1"]) == (0, None)
    assert len(journal()) == 8


def test_a_failed_cell_is_noted_and_who_needs_it_does_not_try(make, journal, monkeypatch):
    monkeypatch.setenv("FAIL", "--trainer CoOp")
    sweep = make("coop capt:CoOp zsclip")
    sweep.save()
    assert run_cells(sweep, [cell.key for cell in sweep.cells]) == (2, None)
    assert [sweep.record(cell) for cell in sweep.cells] == [
        Record("failed", "error: went wrong"),
        Record("failed", "it needs what coop dtd seed 1 should have made, which is not there"),
        None,
    ]
    assert [word for word, *_ in journal()] == ["begin", "fail", "begin", "end", "begin", "end"]
    with pytest.raises(SystemExit) as ended:
        Work(str(sweep.folder))(["capt-CoOp_dtd_1"])
    assert ended.value.code == 1


def test_a_plan_that_cannot_go_on_is_told_in_its_own_words(make):
    sweep = make("coop")
    sweep.settings = replace(sweep.settings, python="no-such-python")
    sweep.save()
    assert run_cells(sweep, ["coop_dtd_1"]) == (1, None)
    assert sweep.record(sweep.cells[0]).line.startswith("error: cannot start no-such-python (No such file")


def test_a_signal_is_left_to_the_run_and_ends_the_job_behind_it(make, journal, monkeypatch):
    """As in a job of Slurm: every process gets it; the stub is told by itself here."""
    monkeypatch.setenv("SLOW", "5")
    sweep = make("coop zsclip")
    sweep.save()
    stub = Path(sweep.settings.python)
    stub.write_text(
        stub.read_text().replace("say begin\n", "say begin\nkill -USR2 $PPID\n(sleep 0.1; kill -USR2 $$) &\n")
    )
    keys = [cell.key for cell in sweep.cells]
    assert run_cells(sweep, keys) == (0, signal.SIGUSR2)
    assert [word for word, *_ in journal()] == ["begin", "USR2"]
    assert sweep.record(sweep.cells[0]) == Record("interrupted", "stopped by USR2")
    assert sweep.record(sweep.cells[1]) is None
    sweep.note(sweep.cells[0], Record("cancelled"))


def test_a_run_that_dies_of_a_signal_in_its_own_way_has_not_failed(make, monkeypatch):
    sweep = make("coop")
    sweep.save()
    stub = Path(sweep.settings.python)
    stub.write_text(
        stub.read_text().replace("say begin\n", "kill -TERM $PPID; sleep 0.1; echo lost a worker; exit 1\n")
    )
    assert run_cells(sweep, ["coop_dtd_1"]) == (0, signal.SIGTERM)
    assert sweep.record(sweep.cells[0]) == Record("interrupted", "lost a worker")


def test_a_signal_that_comes_when_all_is_done_changes_nothing(make):
    sweep = make("zsclip")
    sweep.save()
    stub = Path(sweep.settings.python)
    stub.write_text(stub.read_text().replace("say end\n", "say end\n[[ $folder != *test_new* ]] || kill -USR2 $PPID\n"))
    assert run_cells(sweep, ["zsclip_dtd_1"]) == (0, None)


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with held_back() as got:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)
    assert got == [signal.SIGTERM, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("number", "says", "is_put_back"),
    [
        (signal.SIGUSR2, "", True),  # the time limit is near, or preemption with a warning
        (signal.SIGUSR1, "", True),
        (signal.SIGTERM, "RUNNING", True),  # preemption with a grace time: Slurm has not ended the job
        (signal.SIGTERM, "COMPLETING", False),  # scancel, or scontrol requeue, which puts it back itself
        (signal.SIGTERM, "", False),
    ],
)
def test_a_job_goes_back_into_the_queue_unless_slurm_has_ended_it(number, says, is_put_back, fake, make, monkeypatch):
    (fake / "queue").write_text(f"{says}\n")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    sweep = make("coop")
    sweep.save()
    monkeypatch.setattr(slurm, "run_cells", lambda sweep, keys: (0, number))
    asked = []
    before = signal.signal(signal.SIGUSR2, lambda *_: asked.append("submitit"))
    try:
        with pytest.raises(SystemExit) as ended:
            Work(str(sweep.folder))(["coop_dtd_1"])
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert ended.value.code == 128 + number
    assert asked == ["submitit"] * is_put_back
    if number == signal.SIGTERM:
        assert (fake / "squeue").read_text() == "-h -j 101_3 -o %T\n"


def test_submitit_asks_for_the_same_again(make):
    work = Work("folder")
    again = work.checkpoint(["a", "b"])
    assert (again.function, again.args) == (work, (["a", "b"],))


def test_the_sweep_file_is_whole_json_at_every_step(fake, monkeypatch):
    seen = []
    save = Sweep.save
    monkeypatch.setattr(
        Sweep, "save", lambda self: (save(self), seen.append(json.loads((self.folder / "sweep.json").read_text())))
    )
    main(["submit", *GRID])
    assert [len(state["jobs"]) for state in seen] == [0, 2, 2, 3, 3, 4]
    assert [bool(state["sending"]) for state in seen] == [True, False] * 3
