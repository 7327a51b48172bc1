"""The plan of the house: no room of trainers/capt imports from one above it, and no imports run in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# From the door down to CLIP. A module may import from its own room and from those below it.
FLOORS = ("door", "use", "config", "method", "bank", "bases", "run", "backbone")
AT_THE_DOOR = ("__init__", "__main__", "old_names", "preparation", "registration", "trainer")


def modules(*folders):
    """Dotted name -> file of every module in these folders; a package goes by its own name."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in parts.items()}


def imports_of(name, path, names):
    """Modules of ``names`` that a module imports anywhere in its text: in functions and for type checkers too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            inside = {f"{source}.{alias.name}" for alias in node.names}
            # `from . import clip` is about the module clip, and about the package only where it has no such module.
            found |= inside & names.keys()
            found |= {source} if inside - names.keys() else set()
    return found & names.keys() - {name}


def graph(*folders):
    """Dotted name -> what it imports, of all modules in ``folders``."""
    names = modules(*folders)
    return {name: imports_of(name, path, names) for name, path in names.items()}


def floor_of(name):
    """Number of the floor that a module of trainers/capt lies on."""
    inner = name.removeprefix("trainers.capt").strip(".") or "__init__"
    room = inner.split(".")[0]
    return FLOORS.index("door" if room in AT_THE_DOOR else room)


def upward(imports):
    """Every import of a module that lies above the one that imports it."""
    return sorted(f"{a} -> {b}" for a, found in imports.items() for b in found if floor_of(b) < floor_of(a))


def circle(imports):
    """Modules that import each other in a circle, in the order of the imports; none if there is no circle."""
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imports.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in sorted(imports))), [])


def test_every_module_lies_on_a_floor():
    house = graph("trainers/capt")
    rooms = {path.parent.name for path in (ROOT / "trainers/capt").glob("*/__init__.py")}
    assert len(house) > 30
    assert rooms == set(FLOORS) - {"door", "config"}
    assert all(floor_of(name) >= 0 for name in house)


def test_nothing_imports_upward():
    assert upward(graph("trainers/capt")) == []


def test_no_imports_run_in_a_circle():
    everything = graph("trainers", "datasets")
    assert {"trainers.capt.method.model", "trainers.coop", "datasets.glyph_shapes"} <= everything.keys()
    assert circle(everything) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from ..method import model", {"trainers.capt.method.model"}),
        ("from ..method.model import CAPTModel", {"trainers.capt.method.model"}),
        ("def f():\n    import trainers.capt.trainer", {"trainers.capt.trainer"}),
        ("if TYPE_CHECKING:\n    from .files import StoredBank", {"trainers.capt.bank.files"}),
        ("from .. import load", {"trainers.capt"}),
    ],
)
def test_imports_are_seen_wherever_they_stand(tmp_path, text, expected):
    module = tmp_path / "new.py"
    module.write_text(text)
    assert imports_of("trainers.capt.bank.new", module, modules("trainers/capt")) == expected


def test_upward_imports_and_circles_are_found():
    house = graph("trainers/capt")
    house["trainers.capt.run.files"] = house["trainers.capt.run.files"] | {"trainers.capt.bank.files"}
    assert "trainers.capt.run.files -> trainers.capt.bank.files" in upward(house)
    found = circle(house)
    assert {"trainers.capt.run.files", "trainers.capt.bank.files"} <= set(found)
    assert found[0] == found[-1]
