"""Bytecode is written to a cache folder, or a warning explains why every start compiles again."""

import os
import py_compile
import sys
from pathlib import Path

import pytest

from startup.vllm.launch.baked_caches import keep_bytecode


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package without bytecode, as in a container image."""
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    folder = tmp_path / "vllm"
    folder.mkdir()
    (folder / "__init__.py").touch()
    return folder


def test_a_writable_package_needs_no_cache_folder(package: Path) -> None:
    assert keep_bytecode(package) is None
    assert sys.pycache_prefix is None


@pytest.fixture
def place(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the bytecode of a read-only package is kept."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != package)
    return package.parent / "cache" / "vllm_cli" / "bytecode"


def test_bytecode_of_a_read_only_package_goes_to_the_cache_folder(package: Path, place: Path) -> None:
    assert str(place) in (keep_bytecode(package) or "")
    assert sys.pycache_prefix == os.environ["PYTHONPYCACHEPREFIX"] == str(place)
    assert place.stat().st_mode & 0o777 == 0o700
    assert keep_bytecode(package) is None


@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_a_cache_folder_that_others_can_write_to_is_not_used(mode: int, package: Path, place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(mode)
    assert f"other users can write to {place} (mode {mode:04o}): remove it" in (keep_bytecode(package) or "")
    assert sys.pycache_prefix is None
    assert "PYTHONPYCACHEPREFIX" not in os.environ


def test_the_warning_names_a_link_in_place_of_the_cache_folder(package: Path, place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.symlink_to(package.parent)
    assert f"{place} is a link: remove it" in (keep_bytecode(package) or "")
    assert sys.pycache_prefix is None


def test_the_warning_names_pythondontwritebytecode(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "PYTHONDONTWRITEBYTECODE" in (keep_bytecode(package) or "")


def test_a_compiled_package_needs_no_warning(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    py_compile.compile(str(package / "__init__.py"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert keep_bytecode(package) is None
