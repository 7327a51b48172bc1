"""Public functions say their types, and those that work on tensors say the shapes."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("datasets", "trainers", "capt_tools")  # folders whose modules are counted
SHAPE = re.compile(r"``\([^`()]*,[^`()]*\)``|\bscalars?\b")  # ``(B, D)``, ``(C,)``, "a scalar"


@dataclass(frozen=True)
class Function:
    """A public function or method: where it is, what lacks a type, and whether it works on tensors and says shapes."""

    place: str
    untyped: tuple[str, ...]
    takes_tensors: bool
    says_shapes: bool


def functions_of(source, where):
    """The public functions of a module's source and of its public classes; `where` begins their places."""
    found = []

    def visit(body, prefix, class_doc, in_class):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, f"{prefix}{node.name}.", ast.get_docstring(node) or "", True)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                found.append(_function(node, f"{where}:{node.lineno} {prefix}{node.name}", class_doc, in_class))

    visit(ast.parse(source).body, "", "", False)
    return found


def _function(node, place, class_doc, in_class):
    arguments = [*node.args.posonlyargs, *node.args.args]
    is_static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
    if in_class and not is_static:
        arguments = arguments[1:]  # self or cls
    arguments += [a for a in (node.args.vararg, *node.args.kwonlyargs, node.args.kwarg) if a is not None]
    untyped = [argument.arg for argument in arguments if argument.annotation is None]
    untyped += ["return"] if node.returns is None else []
    annotations = [a for a in (*(argument.annotation for argument in arguments), node.returns) if a is not None]
    takes_tensors = any(re.search(r"\bTensor\b", ast.unparse(annotation)) for annotation in annotations)
    doc = ast.get_docstring(node) or ""
    says_shapes = bool(SHAPE.search(f"{doc}\n{class_doc}" if node.name == "forward" else doc))
    return Function(place, tuple(untyped), takes_tensors, says_shapes)


def public_functions():
    """Of every module that is counted."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    places = [path.relative_to(ROOT).as_posix() for path in paths]
    return [function for place in places for function in functions_of((ROOT / place).read_text("utf-8"), place)]


def test_every_public_function_is_annotated():
    functions = public_functions()
    assert len(functions) > 400
    lacking = [f"{f.place}: {', '.join(f.untyped)}" for f in functions if f.untyped]
    assert not lacking, "without a type:\n" + "\n".join(lacking)


def test_nine_of_ten_functions_with_tensors_say_the_shapes():
    functions = [f for f in public_functions() if f.takes_tensors]
    assert len(functions) > 130
    silent = [f.place for f in functions if not f.says_shapes]
    share = 1 - len(silent) / len(functions)
    assert share >= 0.9, f"{share:.0%} of {len(functions)} say shapes; those that do not:\n" + "\n".join(silent)


@pytest.mark.parametrize(
    ("source", "untyped", "says_shapes"),
    [
        ("def f(x: Tensor, *rest, y=1) -> Tensor:\n    '''Features ``(B, D)``.'''", ("rest", "y"), True),
        ("def f(x: dict[str, Tensor]):\n    '''Features (B, D) of a call ``f(x)``.'''", ("return",), False),
        ("class A:\n    '''``(B,)``'''\n    def forward(self, x: Tensor) -> Tensor: ...", (), True),
        ("class A:\n    '''``(B,)``'''\n    def other(self, x: Tensor) -> Tensor: ...", (), False),
        ("class A:\n    @staticmethod\n    def f(x, y: Tensor) -> None:\n        '''y is a scalar.'''", ("x",), True),
    ],
)
def test_what_is_counted(source, untyped, says_shapes):
    (function,) = functions_of(source, "module.py")
    assert function.untyped == untyped
    assert function.takes_tensors
    assert function.says_shapes == says_shapes


def test_private_names_are_not_counted():
    assert not functions_of(
        "def _f(x): ...\nclass _A:\n    def f(self, x): ...\nclass B:\n    def _g(self): ...", "m.py"
    )
