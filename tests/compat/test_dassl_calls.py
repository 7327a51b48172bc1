"""Every call from the plugin into Dassl fits every Dassl that a host brings."""

import json
import os
from pathlib import Path

import dassl_calls
import pytest

CALLS = dassl_calls.plugin_calls()
SIGNATURES = json.loads(dassl_calls.STORED.read_text())
# A version lacks it, and the plugin asks before it calls.
ASKED_FOR = {"TrainerX.write_scalar": "ATPrompt"}


def taken(call, version):
    """Parameters of ``call`` in a version, as text; None where its Dassl has no such function."""
    (text,) = [text for names, text in SIGNATURES[call].items() if version in names.split()]
    return text or None


def test_the_list_is_whole():
    """What the plugin calls of Dassl; a call that is new here needs its home in dassl_calls.py, and signatures."""
    assert {call for call, *_ in CALLS} == dassl_calls.HOMES.keys()
    assert set(" ".join(names for texts in SIGNATURES.values() for names in texts).split()) == set(dassl_calls.COPIES)


@pytest.mark.parametrize("version", dassl_calls.COPIES)
def test_every_call_fits(version):
    misfits = []
    for call, num_positional, keywords, file in CALLS:
        parameters = taken(call, version)
        if parameters is None:
            is_whole = not (version == "LightRA" and dassl_calls.HOMES[call][0].startswith("data/"))
            if is_whole and ASKED_FOR.get(call) != version:
                misfits.append(f"{file}: {version} has no {call}")
            continue
        itself = [None] * ("." in call)  # self
        try:
            dassl_calls.signature(parameters).bind(*itself, *[None] * num_positional, **dict.fromkeys(keywords))
        except TypeError as error:
            misfits.append(f"{file}: {call}({parameters}) of {version}: {error}")
    assert not misfits, "\n".join(misfits)


def test_saving_gives_each_version_what_it_takes():
    from trainers.capt.run.host_dassl import taken_by

    named = {"is_best": True, "val_result": 3.0, "model_name": "a"}
    for version in dassl_calls.COPIES:
        scope = {}
        exec(f"def save_model({taken('TrainerX.save_model', version)}): return locals()", scope)
        given = scope["save_model"](None, 4, "out", **taken_by(scope["save_model"], named))
        assert {key: given[key] for key in ("epoch", "directory", "is_best", "model_name")} == {
            "epoch": 4, "directory": "out", "is_best": True, "model_name": "a"
        }  # fmt: skip
        assert given.get("val_result", 3.0) == 3.0


def test_stored_signatures_are_those_of_the_copies():
    peers = os.environ.get("CAPT_PEERS")
    there = {v: f for v, f in dassl_calls.COPIES.items() if peers and (Path(peers) / f / "dassl").is_dir()}
    if not there:
        pytest.skip("CAPT_PEERS names no folder with copies of Dassl")
    for version, folder in there.items():
        found = dassl_calls.signatures_of(Path(peers) / folder)
        assert {call: taken(call, version) or "" for call in found} == found
