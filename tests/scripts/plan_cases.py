"""What the shell scripts are asked in ``test_plan_golden.py``, and how an answer is recorded.

The answers in ``plan_golden.json`` are those of the scripts as they were before their plans moved from shell to Python;
ablate.sh alone is recorded anew: its variants follow the defaults.
``python tests/scripts/plan_cases.py`` records them anew: only where a change of what the scripts print is meant.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).with_name("plan_golden.json")

# Stands for the python that runs train.py: says how it was called, makes what a run makes, fails where FAIL matches.
STUB = """#!/bin/bash
[[ $1 != -* ]] || exit 1
echo "called: $*"
[[ -z ${FAIL:-} || "$*" != *$FAIL* ]] || { echo "went wrong" >&2; exit 3; }
folder='' train=1
for word; do
    [[ $word != --eval-only ]] || train=0
    [[ ${before:-} != --output-dir ]] || folder=$word
    before=$word
done
[[ -n $folder ]] || exit 0
mkdir -p "$folder/learner"
[[ $train == 0 ]] || { touch "$folder/learner/model.pth.tar-9"; echo model.pth.tar-9 >"$folder/learner/checkpoint"; }
echo "* accuracy: 50.0%"
echo "{}" >"$folder/results.json"
"""

METHODS = ["capt", "clipadapter", "cocoop", "coop", "ivlp", "linearprobe", "maple", "promptkd", "promptsrc"]
METHODS += ["tipadapter", "tipadapterf", "vpt", "zsclip"]
ARGUMENTS = {
    "base2new_train": "dtd 1",
    "base2new_test": "dtd 1",
    "few_shot": "dtd 4",
    "xd_train": "imagenet 2",
    "xd_test": "dtd 2",
    "zeroshot": "dtd rn50",
    "main": "dtd rn50 end 16 4 False",
    "eval": "dtd rn50_ep50",
}
BASES = ["CoOp", "CoCoOp", "MaPLe", "IVLP", "VPT", "PromptSRC", "PromptKD", "CLIPAdapter", "TipAdapterF", "LinearProbe"]
OUT = "{tmp}/out"
REAL = {"DRY_RUN": "0", "PYTHON": "{tmp}/stub", "OUTPUT": OUT}


@dataclass(frozen=True)
class Case:
    """One call of a script.

    Attributes:
        script: below scripts/, without .sh.
        arguments: separated by blanks; ``{tmp}`` is a folder of the case's own.
        variables: environment, beside DRY_RUN=1 and PYTHON=python.
        files: path -> content, made before the call.
        is_unordered: runs go side by side, so that only the set of lines is promised.
    """

    script: str
    arguments: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    is_unordered: bool = False

    @property
    def name(self) -> str:
        words = [f"{key}={value}" for key, value in self.variables.items()]
        return " ".join(
            [*words, self.script, self.arguments, *(f"{path}={text!r}" for path, text in self.files.items())]
        ).strip()


def method_scripts() -> list[Case]:
    """Every script of every method as it stands, and with too few arguments."""
    found = sorted(path for method in METHODS for path in (ROOT / "scripts" / method).glob("*.sh"))
    found = [path for path in found if path.stem in ARGUMENTS]
    whole = [Case(f"{path.parent.name}/{path.stem}", ARGUMENTS[path.stem]) for path in found]
    return whole + [
        Case(f"{path.parent.name}/{path.stem}") for path in found if path.parent.name in ("coop", "promptkd")
    ]


def variables() -> list[Case]:
    """The variables of _run.sh, on methods for which they mean something."""
    train, test, few = "coop/base2new_train", "coop/base2new_test", "maple/few_shot"
    everything = {"DATA": "my data", "BACKBONE": "a b.pt", "SIZE": "(48, 48)", "SHOTS": "4", "CFG": "vit_b16"}
    everything |= {"EPOCHS": "3", "OUTPUT": "else where", "OPTS": "A.B  1 C 'x y'", "VARIANT": "mine"}
    cases = [
        Case(script, ARGUMENTS[script.split("/")[1]], everything) for script in (train, test, few, "coop/xd_train")
    ]
    for script in ("coop/main", "coop/eval", "coop/zeroshot", "zsclip/base2new_test", "coop/xd_test"):
        cases.append(Case(script, ARGUMENTS[script.split("/")[1]], everything))
    cases += [Case(test, "dtd 1", {"LOADEP": epoch}) for epoch in ("best", "7")]
    cases += [Case(train, "imagenet 2"), Case(test, "imagenet 2"), Case("promptsrc/xd_train", "3")]
    cases += [Case("promptkd/base2new_train", dataset + " 1") for dataset in ("fgvc_aircraft", "food101")]
    teacher = {"TEACHER": "ViT-L/14", "TEACHER_DIR": "a-teacher", "OPTS": "X 1"}
    for script in ("base2new_train", "base2new_test", "xd_train"):
        cases.append(Case(f"promptkd/{script}", "dtd 1", teacher | {"SHOTS": "8", "SUB": "base"}))
    cases += [Case("maple/base2new_test", "dtd 1", {"SUB": "base"}), Case(few, "dtd 4", {"SEEDS": "5 6"})]
    cases += [Case("maple/xd_test", "dtd 1", {"SOURCE": "sun397"}), Case("maple/xd_train", "4", {"SOURCE": "sun397"})]
    cases += [Case("coop/eval", "dtd rn50", {"CTP": "front", "NCTX": "4", "CSC": "True", "SEEDS": "3"})]
    cases += [Case(train, "dtd 1", {"DRY_RUN": "yes", "SHOTS": "", "SIZE": "", "PYTHON": "my python"})]
    cases += [Case(train, "dtd 1", {"OPTS": 'A ~b=~/x,y#z [1;2] {3}|&<>!?^$`\\" B #c \t D ~', "DATA": "*"})]
    return cases


def bases() -> list[Case]:
    """CAPT on each of its base learners."""
    scripts = ("base2new_train", "base2new_test", "few_shot", "xd_train", "xd_test")
    cases = [Case(f"capt/{name}", ARGUMENTS[name], {"BASE": base}) for base in BASES[:7] for name in scripts]
    cases += [Case("capt/base2new_train", "dtd 1", {"BASE": base}) for base in [*BASES[7:], "Unknown"]]
    extra = {
        "BASE": "CoOp",
        "OPTS": "X 1",
        "VARIANT": "v",
        "EPOCHS": "3",
        "SEEDS": "7 8",
        "BACKBONE": "b",
        "SIZE": "(1, 1)",
    }
    cases += [Case(f"capt/{name}", ARGUMENTS[name], extra) for name in scripts]
    teacher = {"BASE": "PromptKD", "TEACHER": "l.pt", "TEACHER_DIR": "t"}
    cases += [Case("capt/base2new_train", "dtd 1", teacher | more) for more in ({}, {"BASE_DIR": "theirs"})]
    for more in (
        {"BASE_DIR": "theirs"},
        {"BASE_CFG": "vit_b16"},
        {"BASE_CFG": "none"},
        {"CFG": "demo"},
        {"LOADEP": "best"},
    ):
        cases += [Case(f"capt/base2new_{part}", "dtd 1", {"BASE": "CoOp"} | more) for part in ("train", "test")]
    return cases


def disk() -> list[Case]:
    """What lies in the output folder decides: done runs, checkpoints, bases."""
    run = "out/base2new/train_base/dtd/shots_16/"
    coop, capt = run + "CoOp/vit_b16_ctxv1/seed1/", run + "CAPT/vit_b16_ep20_on_CoOp/seed1/"
    out, on_coop = {"OUTPUT": OUT}, {"OUTPUT": OUT, "BASE": "CoOp"}
    pointer = {coop + "a/checkpoint": "model-best.pth.tar\n", coop + "b/checkpoint": "model.pth.tar-12"}
    done = {coop + "results.json": "{}"}
    return [
        Case("coop/base2new_train", "dtd 1", out, done),
        Case("coop/base2new_train", "dtd 1", out, pointer),
        Case("coop/base2new_test", "dtd 1", out, pointer),
        Case("coop/base2new_test", "dtd 1", out | {"LOADEP": "3"}, pointer),
        Case("coop/base2new_test", "dtd 1", out | {"EPOCHS": "3"}, pointer),
        Case("capt/base2new_train", "dtd 1", on_coop | {"EPOCHS": "3", "LOADEP": "4"}, done | pointer),
        Case("capt/base2new_train", "dtd 1", on_coop | {"EPOCHS": "3", "LOADEP": "4"}, done),
        Case("capt/base2new_train", "dtd 1", on_coop, done | {capt + "results.json": ""}),
        Case("capt/base2new_test", "dtd 1", on_coop, {capt + "bank/checkpoint": "model.pth.tar-5\nmore\n"}),
    ]


def runs() -> list[Case]:
    """Runs that are started, by a python that only says how."""
    model = {"out/base2new/train_base/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1/learner/model-best.pth.tar": ""}
    fails = REAL | {"FAIL": "--trainer CoOp"}
    cases = [
        Case("coop/base2new_train", "dtd 1", REAL),
        Case("coop/base2new_train", "dtd 1", fails),
        Case("coop/base2new_test", "dtd 1", REAL),
        Case("coop/base2new_test", "dtd 1", REAL, model),
        Case("coop/xd_test", "dtd 1", REAL),
        Case("coop/eval", "dtd rn50", REAL),
        Case("coop/eval", "nothing rn50", REAL),
        Case("maple/few_shot", "dtd 1", REAL | {"FAIL": "seed2"}),
        Case("capt/base2new_train", "dtd 1", REAL | {"BASE": "MaPLe"}),
        Case("capt/base2new_train", "dtd 1", fails | {"BASE": "CoOp"}),
        Case("capt/base2new_test", "dtd 1", REAL | {"BASE": "CoOp"}),
        Case("capt/few_shot", "dtd 2", REAL | {"BASE": "CoOp", "SEEDS": "1 2"}),
        Case("capt/xd_train", "1", REAL | {"BASE": "MaPLe", "SOURCE": "caltech101"}),
        Case("zsclip/zeroshot", "dtd rn50", REAL),
    ]
    return cases


def wrong() -> list[Case]:
    """Mistakes: one line, a code other than 0, nothing started."""
    cases = [Case(f"coop/{name}", words) for name in ("base2new_train", "xd_train") for words in ("nothing 1", "dtd")]
    cases += [
        Case("coop/few_shot", "nothing 1"),
        Case("coop/zeroshot", "nothing rn50"),
        Case("coop/zeroshot", "dtd no"),
    ]
    cases += [Case(f"coop/{name}", "dtd 1", {"CFG": "none"}) for name in ("base2new_train", "xd_test", "few_shot")]
    cases += [Case("zsclip/base2new_train", "nothing 1", {"CFG": "none"}), Case("promptkd/xd_train", "dtd")]
    return cases


def run_all() -> list[Case]:
    """Methods by data sets by seeds."""
    some = {"METHODS": "zsclip coop capt:CoOp capt capt:MaPLe", "DATASETS": "dtd eurosat", "SEEDS": "1 2"}
    few = {"METHODS": "coop capt:CoOp", "DATASETS": "dtd", "SEEDS": "1"}
    old = {"METHODS": "zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp"}
    return [
        Case("run_all", "", {"DATASETS": "dtd", "SEEDS": "3"} | old),
        Case("run_all", "base2new", some | {"CFG": "demo", "BACKBONE": "b", "OPTS": "X 1", "BASE": "IVLP"}),
        Case("run_all", "", {"METHODS": "zsclip", "SEEDS": "1"}),
        Case("run_all", "xd", some),
        Case("run_all", "few_shot", some | {"SHOTS": "2", "VARIANT": "v"}),
        Case("run_all", "few_shot", some | {"CFG": "demo"}),
        Case("run_all", "xd", {"METHODS": "tipadapter", "DATASETS": "dtd", "SEEDS": "1"}),
        Case("run_all", "", few | {"CFG": "none"}),
        Case("run_all", "", few | {"GPUS": "3"}),
        Case("run_all", "", some | {"GPUS": "0 1"}, is_unordered=True),
        Case("run_all", "xd", few | {"GPUS": "0 1"}),
        Case("run_all", "base2old"),
        Case("run_all", "", REAL | few),
        Case("run_all", "xd", REAL | few),
        Case("run_all", "few_shot", REAL | few),
        Case("run_all", "", REAL | some | {"FAIL": "train_base/eurosat/shots_16/CoOp"}),
        Case("run_all", "", REAL | few | {"GPUS": "0 1", "SEEDS": "1 2"}, is_unordered=True),
    ]


def wholes() -> list[Case]:
    """ablate, reproduce, quick and quickstart."""
    ablate, reproduce, quick = "capt/ablate", "capt/reproduce", "capt/quick"
    few = {"VARIANTS": "full no_sem shots_4 alpha_2 alpha_0.5"}
    mine = {"OPTS": "X 1", "VARIANT": "v", "BACKBONE": "b", "SHOTS": "8"}
    folder, photos = {"photos/cup/a.png": ""}, "{tmp}/photos"
    listed = {"METHODS": "zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp capt:MaPLe"}
    return [
        Case(ablate, "dtd 1"),
        Case(ablate, "dtd", few | {"SEEDS": "4 5", "BASE": "CoOp"}),
        Case(ablate, "dtd 1 2", few | mine | {"BASE": "MaPLe", "BASE_CFG": "vit_b16_c2_ep5_batch4_2ctx"}),
        Case(ablate, "dtd 1", {"VARIANTS": "crossfit experts_2 keep_3", "FOLD_CONFIG": "fold.yaml", "CFG": "demo"}),
        Case(ablate, "dtd 1", {"VARIANTS": "full nothing"}),
        Case(ablate, "dtd 1", {"VARIANTS": "full", "BASE": "PromptKD"}),
        Case(ablate),
        Case(ablate, "dtd 1", REAL | few | {"BASE": "CoOp"}),
        Case(ablate, "dtd 1", REAL | few | {"FAIL": "no_sem"}),
        Case(ablate, "dtd 1", REAL | few | {"FAIL": "compare.py"}),
        Case(reproduce, "dtd 2"),
        Case(reproduce, "food101 2 --protocol honest", mine),
        Case(reproduce, "dtd 2 --protocol published"),
        Case(reproduce, "dtd 2 --protocol published", {"OPTS": "X 1", "CFG": "demo", "TEACHER": "l.pt"}),
        Case(reproduce, "dtd 2", {"TEACHER_DIR": "theirs", "STUDENT_CFG": "vit_b16_c2_ep20_batch8_4+4ctx"}),
        Case(reproduce, "dtd 2", {"TEACHER_CFG": "demo", "EPOCHS": "1", "SIZE": "(48, 48)", "BACKBONE": "b"}),
        Case(reproduce, "dtd 2 --protocol other"),
        Case(reproduce, "dtd 2 honest"),
        Case(reproduce, "dtd"),
        Case(reproduce, "nothing 1"),
        Case(reproduce, "dtd 1", REAL),
        Case(reproduce, "dtd 1 --protocol published", REAL),
        Case(reproduce, "dtd 1", REAL | {"FAIL": "--trainer PromptKD"}),
        Case(quick),
        Case(quick, "{tmp}/none"),
        Case(quick, photos, files=folder),
        Case(quick, f"{photos}/../photos/ 4", {"SEEDS": "1 2", "BASE": "CoOp", "OUTPUT": OUT, "CFG": "demo"}, folder),
        Case(quick, photos, {"SHOTS": "2", "EPOCHS": "1", "VARIANT": "v", "OPTS": "X 1"}, folder),
        Case(quick, photos, {"OUTPUT": OUT}, folder | {"out/folder.txt": "another"}),
        Case(quick, photos, {"OUTPUT": OUT}, folder | {"out/folder.txt": photos}),
        Case(quick, f"{photos} 8", REAL, folder),
        Case(quick, photos, REAL | {"OUTPUT": "{tmp}/my out", "SEEDS": "1 2"}, folder),
        Case(quick, photos, REAL | {"FAIL": "--trainer ZeroshotCLIP"}, folder),
        Case(quick, photos, REAL | {"FAIL": "compare.py"}, folder),
        Case("quickstart", "", listed),
        Case("quickstart", "", listed | {"METHODS": "coop", "OUTPUT": "o", "DATA": "d", "BACKBONE": "b", "SHOTS": "4"}),
        Case("quickstart", "", {"METHODS": "zsclip capt:CoOp", "VENV": "{tmp}/venv"} | {"DRY_RUN": "0", "OUTPUT": OUT}),
        Case(
            "quickstart", "", {"METHODS": "coop", "VENV": "{tmp}/venv", "DRY_RUN": "0", "OUTPUT": OUT, "FAIL": "CoOp"}
        ),
    ]


def all_cases() -> list[Case]:
    """Every case, each once."""
    groups = (method_scripts, variables, bases, disk, runs, wrong, run_all, wholes)
    return [case for group in groups for case in group()]


def make_checkout(folder: Path) -> Path:
    """A checkout without runs: in the real one, what is done already would be skipped."""
    for name in ("scripts", "configs", "capt_tools", "requirements.txt", "setup.py", "pyproject.toml"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


def make_venv(folder: Path) -> None:
    """An environment that quickstart.sh finds installed, with the stub for its python."""
    parts = ("requirements.txt", "setup.py", "pyproject.toml")
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in parts)).hexdigest()
    (folder / "bin").mkdir(parents=True)
    (folder / "installed-tables").write_text(digest)
    (folder / "bin" / "python").write_text(STUB)
    (folder / "bin" / "python").chmod(0o755)


def answer(case: Case, checkout: Path, folder: Path) -> dict[str, object]:
    """Exit code and lines of a case, with the names of the two folders taken out."""
    fill = lambda text: text.replace("{tmp}", str(folder))  # noqa: E731
    (folder / "stub").write_text(STUB)
    (folder / "stub").chmod(0o755)
    if "VENV" in case.variables:
        make_venv(folder / "venv")
    for path, content in case.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(fill(content))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    keep = {"PATH": path, "HOME": os.environ.get("HOME", str(folder))}
    python = {} if "VENV" in case.variables else {"PYTHON": "python"}
    env = {**keep, "DRY_RUN": "1", **python, **{key: fill(value) for key, value in case.variables.items()}}
    command = ["bash", f"{checkout}/scripts/{case.script}.sh", *fill(case.arguments).split()]
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return {
        "code": result.returncode,
        "out": _lines(result.stdout, case, checkout, folder),
        "err": _lines(result.stderr, case, checkout, folder),
    }


def _lines(text: str, case: Case, checkout: Path, folder: Path) -> list[str]:
    text = text.replace(str(checkout), "ROOT").replace(str(folder), "TMP")
    text = re.sub(r"Took \d+ s", "Took 0 s", text)
    lines = text.split("\n")
    said = {" ".join(shlex.split(line)[1:]) for line in lines if "train.py" in line or "compare.py" in line}
    lines = ["called as said" if line.removeprefix("called: ") in said else line for line in lines]
    return sorted(lines) if case.is_unordered else lines


def load() -> dict[str, dict[str, object]]:
    """The stored answers by the name of their case."""
    stored = json.loads(STORED.read_text())
    lines: list[str] = []
    for row in stored["lines"]:
        shared, rest = row.split("|", 1)
        lines.append((lines[-1] if lines else "")[: int(shared)] + rest)
    return {
        name: {"code": code, "out": [lines[i] for i in out], "err": [lines[i] for i in err]}
        for name, (code, out, err) in stored["answers"].items()
    }


def record() -> None:
    """Ask every case and store the answers, one a line."""
    answers = {}
    with tempfile.TemporaryDirectory() as root:
        checkout = make_checkout(Path(root))
        for case in all_cases():
            assert case.name not in answers, case.name
            with tempfile.TemporaryDirectory() as folder:
                answers[case.name] = answer(one_after_the_other(case), checkout, Path(folder))
    store(answers)


def one_after_the_other(case: Case) -> Case:
    """The case without GPUS: shells that print side by side tear each other's lines."""
    if not case.is_unordered:
        return case
    return replace(case, variables={key: value for key, value in case.variables.items() if key != "GPUS"})


def store(answers: dict[str, dict[str, object]]) -> None:
    """Write answers: each line once, as what it shares with the line before and the rest; then a case a line."""
    texts = sorted({line for found in answers.values() for line in [*found["out"], *found["err"]]})
    number = {text: i for i, text in enumerate(texts)}
    rows = [
        f"{json.dumps(name)}: {json.dumps([found['code'], *([number[t] for t in found[k]] for k in ('out', 'err'))])}"
        for name, found in answers.items()
    ]
    shared = [len(os.path.commonprefix(pair)) for pair in zip(["", *texts], texts, strict=False)]
    lines = ",\n".join(json.dumps(f"{n}|{text[n:]}") for n, text in zip(shared, texts, strict=True))
    STORED.write_text('{"lines": [\n' + lines + '\n],\n"answers": {\n' + ",\n".join(rows) + "\n}}\n")


if __name__ == "__main__":
    record()
