"""Run another repository's own train.py on the CPU, with a CLIP of one's own.

    python tests/peers/run_host.py <copy of the host> <clip.pt> <its Dassl, or ''> <train.py's arguments ...>

In memory ``.cuda()`` and ``.half()`` do nothing and CLIP's weights come from the file; hard-coded widths are replaced
in the copy (:func:`fit_widths`).
"""

import importlib
import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import run_original  # noqa: E402

# File below the host, text, what takes its place.
WIDTHS = [
    ("trainers/tcp.py", "-1,512)", "-1,{text})"),
    ("trainers/coprompt.py", "ctx_dim, 768", "ctx_dim, {visual}"),
    ("trainers/coprompt.py", "n_ctx, 512", "n_ctx, {text}"),
    ("trainers/coprompt.py", "Adapter(512", "Adapter({joint}"),
    ("trainers/maple_atp.py", "ctx_dim, 768", "ctx_dim, {visual}"),
    ("trainers/maple_atp.py", "n_ctx, 512", "n_ctx, {text}"),
]


def fit_widths(host, state):
    """Make a copy of a host fit a CLIP of other widths than ViT-B/16's."""
    widths = {"text": state["ln_final.weight"].shape[0], "visual": state["visual.ln_post.weight"].shape[0]}
    widths["joint"] = state["text_projection"].shape[1]
    for name, old, new in WIDTHS:
        path = Path(host) / name
        if path.is_file():
            path.write_text(path.read_text().replace(old, new.format(**widths)))


def main(host, clip_path, dassl, *arguments):
    """``python train.py <arguments>`` in ``host``."""
    os.chdir(host)
    copies, name = Path(host).parent, Path(host).name
    if dassl:
        sys.path.insert(0, dassl)
    run_original._prepare(copies, name, clip_path)
    if (Path(host) / "trainers" / "clip_text").is_dir():  # TCP's second copy of CLIP
        second = importlib.import_module("trainers.clip_text.clip")
        second._MODELS[clip_path], second._download = clip_path, lambda url, *args: url
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
