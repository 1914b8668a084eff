"""Compiled modules are kept somewhere, or the user is told why every start compiles them again."""

import os
import py_compile
import sys
from pathlib import Path

import pytest

from startup.vllm.bytecode import keep_bytecode


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package without compiled modules, as images have it."""
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    folder = tmp_path / "vllm"
    folder.mkdir()
    (folder / "__init__.py").touch()
    return folder


def test_package_that_can_be_written_to_needs_nothing(package: Path) -> None:
    assert keep_bytecode(package) is None
    assert sys.pycache_prefix is None


def test_package_that_cannot_be_written_to_has_them_in_the_cache_folder(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != package)
    notice = keep_bytecode(package)
    place = package.parent / "cache" / "vllm_cli" / "bytecode"
    assert notice is not None
    assert str(place) in notice
    assert sys.pycache_prefix == os.environ["PYTHONPYCACHEPREFIX"] == str(place)
    assert keep_bytecode(package) is None


def test_switch_against_compiled_modules_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "PYTHONDONTWRITEBYTECODE" in (keep_bytecode(package) or "")


def test_package_that_is_compiled_is_left_alone(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    py_compile.compile(str(package / "__init__.py"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert keep_bytecode(package) is None
