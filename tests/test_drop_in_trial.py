"""What drop_in.py says of entry points that cannot train CAPT, tried in small hosts that each have one fault."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import hosts  # noqa: E402

from capt_tools import drop_in  # noqa: E402
from capt_tools.dropping import trial  # noqa: E402
from capt_tools.dropping.host import Host  # noqa: E402

TRAIN = """\
import argparse
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, setup_logger
import trainers.own


def extend_cfg(cfg):
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.TRAINER.NAME = args.trainer
    cfg.OUTPUT_DIR = args.output_dir
    # checked here
    cfg.freeze()
    return cfg


def main(args):
    cfg = setup_cfg(args)
    setup_logger(cfg.OUTPUT_DIR)
    print(collect_env_info())
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir)
        trainer.test()
        return
    trainer.load_model(None, 10)
    trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag in ("root", "seed", "trainer", "output-dir", "dataset-config-file", "config-file", "model-dir"):
        parser.add_argument(f"--{flag}", default="")
    parser.add_argument("--eval-only", action="store_true")
    main(parser.parse_args())
"""
CASES = {
    "it trains": ([], None),
    "names of its own (MMRL)": (
        [("    # checked here", '    assert args.trainer in ("Own",), f"no task for {args.trainer}"')],
        "train.py line 18: AssertionError: no task for CAPT",
    ),
    "never trains (PromptAlign)": (
        [("    trainer.train()", "    results = trainer.tpt()\n    print(results.keys())")],
        "train.py never calls trainer.train(); it calls load_model() in line 32, tpt() in line 33",
    ),
    "only builds": ([("    trainer.load_model(None, 10)\n    trainer.train()", "    return")],
                    "train.py never calls trainer.train(); it calls nothing of the trainer"),
    "a file that was never published (FVG-PT)": (
        [("import trainers.own", "import trainers.own\nimport trainers.fvgpt")],
        "train.py line 6 imports trainers.fvgpt, a file that is not in the repository",
    ),
    "a package that is not installed": (
        [("import trainers.own", "import trainers.own\nimport learn2nothing.deep")],
        "train.py line 6 imports learn2nothing, which is not installed",
    ),
    "an error that is swallowed (DePT)": (
        [
            (
                "    trainer = build_trainer(cfg)",
                "    try:\n        cfg.TRAINER.OWN.DEPTH\n    except:\n        raise Exception('failed')",
            ),
        ],
        "train.py line 28: AttributeError: OWN",
    ),
    "another builder": ([("    trainer = build_trainer(cfg)", "    return")],
                        "train.py builds no trainer by dassl's build_trainer"),
    "wants more of the trainer": ([("    trainer.load_model(None, 10)", "    trainer = trainer.model.half()")], None),
    "ends the process": ([("def main(args):", "def main(args):\n    import os; os._exit(3)")],
                         "train.py ended with exit code 3: no word"),
}  # fmt: skip


@pytest.fixture
def host(tmp_path):
    root = tmp_path / "host"
    for folder in ("trainers", "datasets", "configs/trainers", "configs/datasets"):
        (root / folder).mkdir(parents=True)
    (root / "trainers" / "own.py").write_text("")
    (root / "train.py").write_text(TRAIN)
    return root


@pytest.fixture
def _no_trial(monkeypatch):
    monkeypatch.setattr(drop_in, "what_is_in_the_way", lambda host: None)


@pytest.mark.slow  # a process that imports torch for each
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("_no_trial")
def test_what_is_in_the_way(case, host):
    changes, expected = CASES[case]
    source = TRAIN
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    (host / "train.py").write_text(source)
    drop_in.main([str(host)])
    before = hosts.digest(host)
    found = trial.what_is_in_the_way(Host(host, "train.py"))
    # Two lines of the plugin stand in front of the imports, one behind extend_cfg(cfg).
    assert _without_plugins_lines(found, host) == expected
    assert hosts.digest(host) == before


def _without_plugins_lines(found, host):
    """Line numbers as in the host's own file."""
    if found is None:
        return None

    def own(match):
        lines = (host / "train.py").read_text().splitlines()[: int(match[1])]
        return f"line {sum(not line.endswith('by drop_in.py') for line in lines)}"

    return re.sub(r"line (\d+)", own, found)


def test_it_is_said_behind_the_copying(host, capsys):
    (host / "train.py").write_text(TRAIN.replace("import trainers.own", "import trainers.own, trainers.lost"))
    assert drop_in.main([str(host)]) == 0
    out = capsys.readouterr().out
    assert "CAPT is there, but train.py does not come to train it: " in out
    assert "imports trainers.lost, a file that is not in the repository" in out
    assert "run its train.py" not in out


def test_a_trial_ends(host, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.5)
    (host / "train.py").write_text("import time\ntime.sleep(60)\n")
    assert trial.what_is_in_the_way(Host(host, "train.py")) == "train.py had not come to its trainer after 0.5 seconds"
