"""Finds tests that check nothing: no assertion, no expected exception, in them or in their helpers.

A helper checks something if it asserts, raises, or calls one that does. Functions are found by their imports,
methods of helpers by their name alone, since the type of most objects is not known. Part of `make lint`.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

PROVEN_OTHERWISE: Final = {
    "server/engine/features/test_prompt_features.py::test_unpacked_models_take_embeddings": "the check itself raises",
    "server/renderers/images/test_fetcher.py::test_public_addresses_are_accepted": "the function only raises",
}
"""Tests without a check of their own, each with the reason."""

_EXPECTING: Final = frozenset({"raises", "warns", "fail", "check_returncode", "wait_for", "wait_until"})
"""Functions that fail a test, beside `assert_...`: of pytest, subprocess and asyncio, and a fixture."""
_OF_CLASS: Final = ("__init__", "__enter__", "__exit__")
"""What is called where a class is used by its name."""


def main() -> int:
    """Prints the tests that check nothing; returns the exit code."""
    found = find_unproven(Path(__file__).parent)
    unproven = sorted(found - PROVEN_OTHERWISE.keys())
    for test in unproven:
        print(f"{test}: checks nothing; assert something, or give a reason in {Path(__file__).name}")
    for test in sorted(PROVEN_OTHERWISE.keys() - found):
        print(f"{test}: no longer needs its entry in {Path(__file__).name}")
    return 1 if unproven or PROVEN_OTHERWISE.keys() - found else 0


def find_unproven(root: Path) -> set[str]:
    """`folder/test_file.py::test_name` of every test without a check; `root` is the folder `tests`."""
    definitions = [d for path in sorted(root.rglob("*.py")) for d in _read(root, path)]
    checking: set[str] = set()
    while new := {d.key for d in definitions if d.checks(checking)} - checking:
        checking |= new
    return {d.test for d in definitions if d.test is not None and not d.checks(checking)}


class _Definition(NamedTuple):
    """A function, method or class of the test tree."""

    key: str
    """What it is called by: `tests.module.name`, or `.name` for a method."""
    test: str | None
    is_checking: bool
    """Whether it asserts or raises itself."""
    calls: frozenset[str]
    """Keys of what it calls."""

    def checks(self, checking: set[str]) -> bool:
        return self.is_checking or not self.calls.isdisjoint(checking)


def _read(root: Path, file: Path) -> Iterator[_Definition]:
    path = file.relative_to(root)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module = ".".join((root.name, *path.with_suffix("").parts))
    reader = _Reader(_imports(tree) | {node.name: f"{module}.{node.name}" for node in _definitions(tree)})
    is_tests = path.name.startswith("test_")
    methods = {id(member) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for member in node.body}
    for node in _definitions(tree):
        key = f".{node.name}" if id(node) in methods else f"{module}.{node.name}"
        test = f"{path}::{node.name}" if is_tests and node.name.startswith("test_") else None
        parts = [member for member in node.body if getattr(member, "name", "") in _OF_CLASS]
        yield reader.define(key, test, parts if isinstance(node, ast.ClassDef) else [node])


def _definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))


def _imports(tree: ast.Module) -> dict[str, str]:
    froms = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in froms for alias in node.names}


@dataclass
class _Reader:
    """Reads the definitions of one file."""

    names: dict[str, str]
    """By name in the file, the key of what it was defined or imported as."""

    def define(self, key: str, test: str | None, parts: list[ast.stmt]) -> _Definition:
        nodes = [node for part in parts for node in ast.walk(part)]
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        is_checking = (
            any(map(_raises, parts)) or any(isinstance(n, ast.Assert) for n in nodes) or any(map(_fails, calls))
        )
        return _Definition(key, test, is_checking, frozenset(key for call in calls for key in self._keys(call.func)))

    def _keys(self, called: ast.expr) -> Iterator[str]:
        if isinstance(called, ast.Name):
            yield self.names.get(called.id, "")
        elif isinstance(called, ast.Attribute):
            owner = called.value.func if isinstance(called.value, ast.Call) else called.value
            origin = self.names.get(owner.id, "tests.") if isinstance(owner, ast.Name) else "tests."
            yield f"{origin}.{called.attr}"
            if origin.startswith("tests."):  # not of the product
                yield f".{called.attr}"


def _raises(node: ast.AST, *, is_outermost: bool = True) -> bool:
    """Whether it raises itself, rather than a function defined within it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_outermost:
        return False
    return isinstance(node, ast.Raise) or any(_raises(n, is_outermost=False) for n in ast.iter_child_nodes(node))


def _fails(call: ast.Call) -> bool:
    """Whether a call fails the test by itself: `pytest.raises(...)`, `subprocess.run(..., check=True)`."""
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
    if name in _EXPECTING or name.lstrip("_").startswith("assert_"):
        return True
    return any(k.arg == "check" and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


if __name__ == "__main__":
    sys.exit(main())
