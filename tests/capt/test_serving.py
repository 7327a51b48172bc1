"""What a run folder keeps so that it can be served anywhere, and what is said where it is damaged."""

import json

import pytest

from trainers.capt.run.serving import Serving, keep_serving, prompts_folder, read_serving

SERVING = Serving("a drawing of a {}.", ["cup", "jug"], ["cup", "jug", "vase"])


def test_round_trip(tmp_path):
    keep_serving(tmp_path, SERVING, [])
    assert read_serving(tmp_path) == SERVING
    assert not list(prompts_folder(tmp_path).iterdir())


def test_prompt_files_are_copied(tmp_path):
    source = tmp_path / "descriptions" / "drawn_pairs.json"
    source.parent.mkdir()
    source.write_text("{}")
    keep_serving(tmp_path / "run", SERVING, [source])
    source.write_text("changed later")
    assert (prompts_folder(tmp_path / "run") / "drawn_pairs.json").read_text() == "{}"


def test_a_second_run_into_the_folder_replaces_it(tmp_path):
    keep_serving(tmp_path, SERVING, [])
    other = Serving("{}", ["fox"], ["fox"])
    keep_serving(tmp_path, other, [])
    assert read_serving(tmp_path) == other


def test_the_folder_of_an_older_run_has_none(tmp_path):
    assert read_serving(tmp_path) is None


def changed(tmp_path, change):
    keep_serving(tmp_path, SERVING, [])
    path = tmp_path / "capt" / "serving.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(format=99), "format 99, this code reads up to 1; update it"),
        (lambda content: content.pop("format"), "copy the run folder again"),
        (lambda content: content.pop("template"), "template"),
        (lambda content: content.update(colour="red"), "colour"),
    ],
    ids=["newer", "no format", "incomplete", "unknown key"],
)
def test_other_contents_are_refused(tmp_path, change, words):
    changed(tmp_path, change)
    with pytest.raises(ValueError, match=r'serving.json" cannot be read') as caught:
        read_serving(tmp_path)
    assert words in str(caught.value)


def test_half_a_file_is_refused(tmp_path):
    keep_serving(tmp_path, SERVING, [])
    path = tmp_path / "capt" / "serving.json"
    path.write_text(path.read_text()[:30])
    with pytest.raises(ValueError, match="copy the run folder again"):
        read_serving(tmp_path)
