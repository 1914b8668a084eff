"""Definitions are found in sources without an import."""

import ast
from pathlib import Path

import pytest

from startup.hooks.sources import Sources, attributes_read, packages_beside

_MODULE = '''
"""Text with the word hidden
def hidden(): in quotes
"""
import os.path as path
from typing import overload

if path:
    conditional = 1
else:
    def conditional(one): ...

try:
    from package.inner import moved
except ImportError:
    moved = None

@overload
def twice(a): ...
@overload
def twice(b): ...
def twice(c): ...

text = """
def in_text(): ...
"""

class Owner:
    setting: int = 1

    def __init__(self) -> None:
        self.state = 0

    async def method(self, argument): ...
'''


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import moved as renamed\nfrom absent import lost\n")
    (package / "inner.py").write_text("def moved(argument): return argument.read, argument.written, other.third\n")
    (package / "module.py").write_text(_MODULE)
    (package / "newer.py").write_text("a = lambda: yield from\n")
    return Sources(packages_beside(tmp_path))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("path", ast.alias),
        ("conditional", ast.FunctionDef),
        ("text", ast.Assign),
        ("Owner", ast.ClassDef),
        ("Owner.setting", ast.AnnAssign),
        ("Owner.state", ast.Assign),
        ("Owner.method", ast.AsyncFunctionDef),
    ],
)
def test_a_definition_is_found(sources: Sources, path: str, kind: type) -> None:
    assert isinstance(sources.find("package.module", path), kind)


@pytest.mark.parametrize("path", ["hidden", "state", "Owner.other", "absent.name"])
def test_what_is_not_defined_is_not_found(sources: Sources, path: str) -> None:
    assert sources.find("package.module", path) is None


def test_the_last_definition_counts(sources: Sources) -> None:
    found = sources.find("package.module", "twice")
    assert isinstance(found, ast.FunctionDef)
    assert [arg.arg for arg in found.args.args] == ["c"]


def test_a_name_is_followed_to_the_module_that_it_is_imported_from(sources: Sources) -> None:
    found = sources.find("package", "renamed")
    assert isinstance(found, ast.FunctionDef)
    assert found.name == "moved"
    assert attributes_read(found, "argument") == {"read", "written"}


def test_a_name_from_a_package_that_is_not_there_is_an_import(sources: Sources) -> None:
    assert isinstance(sources.find("package", "lost"), ast.alias)


def test_missing_and_unreadable_modules_define_nothing(sources: Sources) -> None:
    assert sources.text("package.absent") is None
    assert sources.find("package.absent", "name") is None
    assert sources.find("package.newer", "a") is None
    assert sources.find("absent", "name") is None


def test_all_files_are_known_that_a_result_depends_on(sources: Sources, tmp_path: Path) -> None:
    sources.find("package.inner", "moved")
    assert tmp_path / "package" / "inner.py" in sources.looked_at
    assert tmp_path / "package" / "inner" / "__init__.py" in sources.looked_at
