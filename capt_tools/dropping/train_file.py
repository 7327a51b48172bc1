"""The three lines that a host's entry point needs, put where they belong and taken out again.

The file is read by Python's own parser, changed by whole lines, and never reformatted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

__all__ = [
    "BY_HAND",
    "MARK",
    "PIP_WAY",
    "NotUnderstoodError",
    "never_loads",
    "unmarked",
    "with_plugin",
    "without_plugin",
]

MARK = "  # CAPT, by drop_in.py"
BRIDGE = "import capt_compat"  # before Dassl: brings one where there is none, repairs one that needs it
PLUGIN = "import trainers.capt"
NODE = "trainers.capt.extend_cfg"

BY_HAND = f"""\
Add these lines to {{entry}} by hand, mark and all, then run this command again for the files:
    {BRIDGE + MARK:<58}before the first import of dassl
    {PLUGIN + MARK:<58}behind the imports of the other trainers
    {NODE + "(cfg)" + MARK:<58}behind extend_cfg(cfg) in setup_cfg"""
PIP_WAY = """\
Or put nothing there: pip install the folder of this repository, and in {entry}
    import capt                 as its first line
    capt.extend_cfg(cfg)        behind extend_cfg(cfg)"""


Import = ast.Import | ast.ImportFrom


class NotUnderstoodError(ValueError):
    """This entry point is not built as CoOp's; says what is missing."""


def with_plugin(source: str) -> str:
    """``source`` with the lines it lacks; itself where it has them all.

    Raises:
        NotUnderstoodError: no place for one of the lines can be found for certain.
    """
    try:
        tree = _parsed(source)
    except SyntaxError as error:
        raise NotUnderstoodError(f"line {error.lineno} is no Python that this version reads") from error
    lines = source.splitlines(keepends=True)
    imports = [node for node in tree.body if isinstance(node, Import)]
    names = {name for node in imports for name in _imported(node)}
    additions: list[tuple[int, str]] = []  # number of lines in front, text

    if BRIDGE.split()[1] not in names:
        additions.append((_first_of(imports, "dassl").lineno - 1, BRIDGE))
    if "trainers.capt" not in names:
        additions.append((_end(_last_trainer(imports)), PLUGIN))
    if NODE not in {ast.unparse(call.func) for call, _ in _calls(tree)}:
        call, statement = _only_call(tree, "extend_cfg")
        line = lines[statement.lineno - 1]
        indent = line[: len(line) - len(line.lstrip())]
        additions.append((_end(statement), f"{indent}{NODE}({ast.unparse(call.args[0])})"))

    for position, text in sorted(additions, reverse=True):
        ending = "\r\n" if lines[position - 1].endswith("\r\n") else "\n"
        lines.insert(position, text + MARK + ending)
    return "".join(lines)


def without_plugin(source: str) -> str:
    """``source`` without the lines that carry the mark."""
    return "".join(line for line in source.splitlines(keepends=True) if not line.rstrip("\r\n").endswith(MARK))


def unmarked(source: str) -> list[tuple[int, str]]:
    """Number and text of the lines that speak of the plugin and carry no mark: added by hand, not taken out."""
    words = (BRIDGE.split()[1], "trainers.capt")
    lines = enumerate(without_plugin(source).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if any(word in line.split("#")[0] for word in words)]


def never_loads(source: str) -> bool:
    """Whether an entry point never asks its trainer to load anything, so that it can test only what it has trained."""
    return not any(isinstance(node, ast.Attribute) and node.attr == "load_model" for node in ast.walk(_parsed(source)))


def _parsed(source: str) -> ast.Module:
    return ast.parse(source.removeprefix("\ufeff"))


def _imported(node: Import) -> Iterator[str]:
    for alias in node.names:
        yield alias.name if isinstance(node, ast.Import) else f"{node.module or ''}.{alias.name}"


def _first_of(imports: Sequence[Import], package: str) -> Import:
    found = _of(imports, package)
    if not found:
        raise NotUnderstoodError(f"it imports nothing from {package} at its top level")
    return found[0]


def _last_trainer(imports: Sequence[Import]) -> Import:
    """The last import of a trainer; the last of all where the host's trainers lie in another folder."""
    return (_of(imports, "trainers") or imports)[-1]


def _of(imports: Sequence[Import], package: str) -> list[Import]:
    return [node for node in imports if any(name.split(".")[0] == package for name in _imported(node))]


def _end(statement: ast.stmt) -> int:
    return statement.end_lineno or statement.lineno


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.Expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node.value, node


def _only_call(tree: ast.Module, function: str) -> tuple[ast.Call, ast.Expr]:
    found = [(call, node) for call, node in _calls(tree) if ast.unparse(call.func) == function and call.args]
    if len(found) != 1:
        raise NotUnderstoodError(f"it calls {function}(cfg) {len(found)} times, not once")
    return found[0]
