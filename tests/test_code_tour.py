"""docs/CODE_TOUR.md meets files that exist, each once but for the model; the documents' links lead somewhere."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOUR = (ROOT / "docs/CODE_TOUR.md").read_text(encoding="utf-8")
MET = re.findall(r"\*\*`([\w/.]+\.py)`\*\*", TOUR)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_it_meets_files_that_exist():
    assert len(MET) > 20
    for name in MET:
        assert (ROOT / "trainers/capt" / name).is_file() or (ROOT / name).is_file(), name


def test_no_step_goes_back_to_a_file():
    assert [name for name, times in Counter(MET).items() if times > 1] == []
    named = Counter(re.findall(r"[\w/]+\.py", TOUR.partition("## Before training")[2]))
    assert {name for name, times in named.items() if times > 1} <= {"method/model.py"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(document):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_the_index_names_every_document():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [
        path.name for path in (ROOT / "docs").glob("*.md") if path.name not in index and path.name != "README.md"
    ] == []
