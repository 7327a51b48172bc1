"""scripts/drop_in.py on small hosts: what it puts, what it refuses, and that nothing of it stays behind."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "peers"))

import hosts  # noqa: E402

from capt_tools import drop_in  # noqa: E402
from capt_tools.dropping.train_file import MARK, NotUnderstoodError, unmarked, with_plugin, without_plugin  # noqa: E402

TRAIN = '''\
"""Entry point."""
import argparse

from dassl.config import get_cfg_default
from dassl.engine import build_trainer

import datasets.pets
import trainers.coop
import trainers.zsclip  # the last one


def extend_cfg(cfg):
    cfg.TRAINER.COOP = 1


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)  # nodes
    return cfg
'''
WITH_PLUGIN = '''\
"""Entry point."""
import argparse

import capt_compat  # CAPT, by drop_in.py
from dassl.config import get_cfg_default
from dassl.engine import build_trainer

import datasets.pets
import trainers.coop
import trainers.zsclip  # the last one
import trainers.capt  # CAPT, by drop_in.py


def extend_cfg(cfg):
    cfg.TRAINER.COOP = 1


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)  # nodes
    trainers.capt.extend_cfg(cfg)  # CAPT, by drop_in.py
    return cfg
'''


@pytest.fixture
def host(tmp_path):
    for folder in ("trainers", "datasets", "configs/trainers/CoOp", "configs/datasets", "scripts/coop"):
        (tmp_path / "host" / folder).mkdir(parents=True)
    (tmp_path / "host" / "trainers" / "__init__.py").touch()
    (tmp_path / "host" / "train.py").write_text(TRAIN)
    (tmp_path / "host" / "train.py").chmod(0o755)
    return tmp_path / "host"


@pytest.fixture(autouse=True)
def _untried(monkeypatch):
    """The trial of the entry point takes seconds; tests/test_drop_in_trial.py has it."""
    monkeypatch.setattr(drop_in, "what_is_in_the_way", lambda host: None)


def call(host, *flags):
    return drop_in.main([str(host), *flags])


# The edit of train.py


def test_three_lines_in_their_places():
    assert with_plugin(TRAIN) == WITH_PLUGIN
    assert with_plugin(WITH_PLUGIN) == WITH_PLUGIN
    assert without_plugin(WITH_PLUGIN) == TRAIN


@pytest.mark.parametrize("change", [lambda s: s.replace("\n", "\r\n"), lambda s: "\ufeff" + s, lambda s: s.rstrip()])
def test_line_ends_and_byte_order_marks_stay(change):
    changed = with_plugin(change(TRAIN))
    assert changed == change(WITH_PLUGIN)
    assert without_plugin(changed) == change(TRAIN)


def test_tabs_and_calls_over_several_lines():
    source = TRAIN.replace("    extend_cfg(cfg)  # nodes", "\textend_cfg(\n\t\tcfg,\n\t)").replace("    ", "\t")
    lines = with_plugin(source).splitlines()
    assert lines[lines.index("\t)") + 1] == f"\ttrainers.capt.extend_cfg(cfg){MARK}"


def test_lines_added_by_hand_are_left_alone():
    by_hand = WITH_PLUGIN.replace(MARK, "")
    assert with_plugin(by_hand) == by_hand == without_plugin(by_hand)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("from dassl.config import get_cfg_default\nfrom dassl.engine import build_trainer", "", "nothing from dassl"),
        ("    extend_cfg(cfg)  # nodes\n", "", "0 times, not once"),
        ("    return cfg", "    extend_cfg(cfg)\n    return cfg", "2 times, not once"),
        ("    extend_cfg(cfg)  # nodes", "    extend_cfg()", "0 times, not once"),
        ("def setup_cfg(args)", "def setup_cfg(args", "line .* is no Python"),
    ],
)
def test_what_is_not_understood_is_refused(old, new, reason):
    assert old in TRAIN
    with pytest.raises(NotUnderstoodError, match=reason):
        with_plugin(TRAIN.replace(old, new))


def test_more_arguments_of_extend_cfg():
    """SpecPL's ``extend_cfg(cfg, vae_k=...)``."""
    source = TRAIN.replace("    extend_cfg(cfg)  # nodes", "    extend_cfg(cfg, vae_k=args.k)").replace(
        "(cfg):", "(cfg, vae_k):"
    )
    lines = with_plugin(source).splitlines()
    assert lines[lines.index("    extend_cfg(cfg, vae_k=args.k)") + 1] == f"    trainers.capt.extend_cfg(cfg){MARK}"


def test_trainers_in_another_folder():
    """LASP's are in prompting/: the plugin's import goes behind the last one, whatever it is."""
    source = TRAIN.replace("import trainers.coop\nimport trainers.zsclip  # the last one", "import prompting.lasp")
    changed = with_plugin(source)
    assert f"import prompting.lasp\nimport trainers.capt{MARK}\n" in changed
    assert without_plugin(changed) == source


# The whole


def test_put_twice_and_undone(host, capsys):
    before = hosts.digest(host)
    assert call(host) == 0
    out = capsys.readouterr().out
    assert "+import trainers.capt" in out
    assert "adds trainers/capt/: " in out
    assert (host / "train.py").read_text() == WITH_PLUGIN
    assert stat.S_IMODE((host / "train.py").stat().st_mode) == 0o755
    assert (host / "scripts/capt/base2new_train.sh").is_file()
    after = hosts.digest(host)
    assert call(host) == 0
    assert "up to date" in capsys.readouterr().out
    assert hosts.digest(host) == after

    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "trainers/capt", "capt_compat", "capt_plan"], cwd=host, check=True
    )
    assert (host / "trainers/capt/__pycache__").is_dir()
    assert call(host, "--undo") == 0
    assert hosts.digest(host) == before


def test_check_changes_nothing(host, capsys):
    before = hosts.digest(host)
    assert call(host, "--check") == 1
    assert "+import trainers.capt" in capsys.readouterr().out
    assert hosts.digest(host) == before
    call(host)
    assert call(host, "--check") == 0


def test_what_was_put_runs_without_this_repository(host):
    call(host)
    script = (
        "import capt_compat, trainers.capt, sys; from dassl.engine import TRAINER_REGISTRY; "
        "from dassl.config import get_cfg_default; cfg = get_cfg_default(); trainers.capt.extend_cfg(cfg); "
        "assert 'CAPT' in TRAINER_REGISTRY.registered_names() and cfg.TRAINER.CAPT.BASE.NAME == 'ZeroshotCLIP'; "
        "files = [str(getattr(m, '__file__', '')) for m in sys.modules.values()]; "
        f"assert not [f for f in files if f.startswith({str(ROOT / 'trainers')!r})]"
    )
    hosts.python(host, "-c", script)


def test_an_entry_point_that_never_loads_is_named(host, capsys):
    call(host)  # PLOT's, with --eval-only, tests at once
    assert (
        "train.py never calls trainer.load_model(), so that --eval-only has nothing to test" in capsys.readouterr().out
    )
    call(host, "--undo")
    (host / "train.py").write_text(TRAIN + "\n\ndef main(args):\n    trainer.load_model(args.model_dir)\n")
    call(host)
    assert "load_model" not in capsys.readouterr().out


def test_what_is_said_of_pairs_comes_along(host):
    """Without these sentences the host's CAPT is another model than this repository's."""
    shipped = sorted((ROOT / "descriptions").glob("*_pairs.json"))
    assert any(path.name == "caltech101_pairs.json" for path in shipped)
    (host / "descriptions").mkdir()
    (host / "descriptions" / "own.txt").write_text("the host's own")
    call(host)
    for path in shipped:
        assert (host / "descriptions" / path.name).read_bytes() == path.read_bytes()
    assert call(host, "--undo") == 0
    assert [path.name for path in (host / "descriptions").iterdir()] == ["own.txt"]


def test_its_scripts_run_in_the_host_and_leave_nothing_behind(host):
    before = hosts.digest(host)
    (host / "configs/datasets/caltech101.yaml").touch()
    (host / "configs/trainers/CoOp/vit_b16_ctxv1.yaml").write_text("OPTIM:\n  MAX_EPOCH: 200\n")
    call(host)
    variables = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DRY_RUN": "1", "BASE": "CoOp"}
    command = ["bash", "scripts/capt/base2new_train.sh", "caltech101", "1"]
    result = subprocess.run(command, cwd=host, env=variables, capture_output=True, text=True, check=True)
    first, second = [line.split() for line in result.stdout.splitlines() if line.startswith("python train.py")]
    assert first[first.index("--trainer") + 1] == "CoOp"
    assert second[second.index("--trainer") + 1] == "CAPT"
    assert second[second.index("TRAINER.CAPT.BASE.DIR") + 1] == first[first.index("--output-dir") + 1]
    assert (host / "capt_plan/__pycache__").is_dir()

    assert call(host, "--undo") == 0
    (host / "configs/datasets/caltech101.yaml").unlink()
    (host / "configs/trainers/CoOp/vit_b16_ctxv1.yaml").unlink()
    assert hosts.digest(host) == before


def test_an_older_plugin_is_replaced(host, capsys, monkeypatch, tmp_path):
    call(host)
    files = dict(drop_in.plan.__globals__["plugin_files"](ROOT))
    newer = tmp_path / "losses.py"
    newer.write_text("# newer\n")
    files["trainers/capt/method/losses.py"] = newer
    del files["trainers/capt/run/files.py"]
    monkeypatch.setitem(drop_in.plan.__globals__, "plugin_files", lambda root: files)
    capsys.readouterr()
    assert call(host) == 0
    out = capsys.readouterr().out
    assert "replaces trainers/capt/method/: 1 file" in out
    assert "removes trainers/capt/run/files.py" in out
    assert (host / "trainers/capt/method/losses.py").read_text() == "# newer\n"
    assert not (host / "trainers/capt/run/files.py").exists()


def test_files_of_the_host_are_never_overwritten(host, capsys):
    (host / "trainers/capt/method").mkdir(parents=True)
    (host / "trainers/capt/method/model.py").write_text("mine")
    before = hosts.digest(host)
    assert call(host) == 2
    assert "trainers/capt/method/model.py is there already and is not CAPT's" in capsys.readouterr().err
    assert hosts.digest(host) == before


def test_changed_files_block_an_update_and_survive_undo(host, capsys):
    call(host)
    changed = host / "trainers/capt/method/model.py"
    changed.write_text(changed.read_text() + "# mine\n")
    assert call(host) == 2
    assert "model.py has been changed since" in capsys.readouterr().err
    assert call(host, "--undo") == 1
    assert "keeps trainers/capt/method/model.py" in capsys.readouterr().out
    assert changed.is_file()
    assert (host / "train.py").read_text() == TRAIN


def test_undo_keeps_later_changes_of_train_py(host, capsys):
    call(host)
    with open(host / "train.py", "a") as file:
        file.write("# later\n")
    assert call(host, "--undo") == 0
    assert (host / "train.py").read_text() == TRAIN + "# later\n"
    assert "other changes in train.py were left" in capsys.readouterr().out


def test_a_root_one_folder_down(host, capsys):
    """KgCoOp/KgCoOp: named, used, and found again by --undo."""
    before = hosts.digest(host)
    assert call(host.parent) == 0
    assert f"holds one repository of that kind: {host}" in capsys.readouterr().out
    assert (host / "trainers/capt/trainer.py").is_file()
    assert call(host.parent, "--undo") == 0
    assert hosts.digest(host) == before
    shutil.copytree(host, host.parent / "other")
    assert call(host.parent) == 2
    assert f"holds 2 repositories; name one of {host}, {host.parent / 'other'}" in capsys.readouterr().err


def test_an_entry_point_of_another_name(host, capsys):
    """baple's main.py; a main.py that is none of Dassl's is no entry point."""
    (host / "train.py").rename(host / "main.py")
    before = hosts.digest(host)
    assert call(host) == 0
    out = capsys.readouterr().out
    assert "+++ main.py, with CAPT" in out
    assert "run its main.py with --trainer CAPT" in out
    assert "scripts/capt speak of train.py" in out
    assert (host / "main.py").read_text() == WITH_PLUGIN
    assert call(host, "--undo") == 0
    assert hosts.digest(host) == before
    (host / "main.py").write_text("print('something else')\n")
    assert call(host) == 2
    assert "it has no train.py or main.py that imports dassl" in capsys.readouterr().err


def test_folders_that_the_host_lacks_come_and_go(host, capsys):
    """LASP keeps its trainers in prompting/ and its configurations beside configs/trainers."""
    shutil.rmtree(host / "trainers")
    shutil.rmtree(host / "configs/trainers")
    before = hosts.digest(host)
    assert call(host) == 0
    out = capsys.readouterr().out
    assert "makes trainers/: " in out
    assert "makes configs/trainers/: " in out
    assert (host / "configs/trainers/CAPT").is_dir()
    assert call(host, "--undo") == 0
    assert hosts.digest(host) == before
    (host / "trainers.py").touch()  # a folder of that name would hide it
    assert call(host) == 2
    assert "it has a trainers.py" in capsys.readouterr().err


def test_lines_by_hand_are_taken_out_or_named(host, capsys):
    call(host)
    (host / "train.py").write_text(WITH_PLUGIN.replace(f"import trainers.capt{MARK}", "import trainers.capt"))
    capsys.readouterr()
    assert call(host, "--undo") == 1
    out = capsys.readouterr().out
    assert "keeps train.py line 10, which carries no mark; take it out by hand: import trainers.capt\n" in out
    assert "capt_compat" not in (host / "train.py").read_text()


def test_comments_about_the_plugin_are_no_lines_of_it():
    assert unmarked(TRAIN + "# import trainers.capt was here\n") == []
    assert unmarked(WITH_PLUGIN) == []
    by_hand = WITH_PLUGIN.replace(MARK, "")
    assert [text for _, text in unmarked(by_hand)] == [
        "import capt_compat", "import trainers.capt", "trainers.capt.extend_cfg(cfg)"
    ]  # fmt: skip


def test_refusals_are_plain_and_name_the_lines(host, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty") == 2
    assert (
        "is no CoOp-style repository: it has no datasets, no configs/datasets, no train.py" in capsys.readouterr().err
    )
    assert call(host, "--undo") == 2
    assert "nothing was put there" in capsys.readouterr().err
    (host / "train.py").write_text(TRAIN.replace("    extend_cfg(cfg)  # nodes\n", ""))
    before = hosts.digest(host)
    assert call(host) == 2
    error = capsys.readouterr().err
    for line in ("import capt_compat", "import trainers.capt", "trainers.capt.extend_cfg(cfg)"):
        assert f"    {line}{MARK} " in error
    assert "pip install" in error
    assert "capt.extend_cfg(cfg)        behind extend_cfg(cfg)" in error
    assert hosts.digest(host) == before


def test_an_interrupted_run_can_be_undone(host, monkeypatch):
    before = hosts.digest(host)
    tree, count = drop_in.put.__globals__, iter(range(100))
    write = tree["write_bytes"]

    def fail_at_the_tenth(*args, **kwargs):
        if next(count) == 10:
            raise OSError("disk full")
        write(*args, **kwargs)

    monkeypatch.setitem(tree, "write_bytes", fail_at_the_tenth)
    assert call(host) == 2
    monkeypatch.undo()
    assert hosts.digest(host) != before
    assert call(host, "--undo") == 0
    assert hosts.digest(host) == before
