"""vLLM's cache folder gets files from the folder of `vllm-cli bake`. Bytecode is kept in the right place."""

import os
import py_compile
import sys
from pathlib import Path

import pytest

from startup.storage.caches import CACHE, add_baked_inspections, keep_bytecode, use_kept_bytecode
from tests.startup.storage.caches.conftest import baked  # noqa: F401 - a fixture
from tests.support.cli import python_output

_NAME = "modelinfos/llama.json"


@pytest.fixture
def root(baked: Path) -> Path:  # noqa: F811
    """The user's cache folder. The baked folder has an inspection of a model."""
    path = baked / CACHE / _NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    path.chmod(0o444)
    return baked.parent / "cache"


def test_inspections_are_copied_unless_the_user_has_them(root, tmp_path):
    add_baked_inspections(tmp_path)
    copied = root / _NAME
    assert copied.read_bytes() == b"{}"
    assert copied.stat().st_mode & 0o200  # vLLM rewrites it
    copied.write_text("mine")
    add_baked_inspections(tmp_path)
    assert copied.read_text() == "mine"


def test_without_a_writable_cache_folder_the_start_has_one_of_its_own(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file" / "cache"))
    session = tmp_path / "session"
    add_baked_inspections(session)
    assert os.environ["VLLM_CACHE_ROOT"] == str(session / "cache")
    assert (session / "cache" / _NAME).read_bytes() == b"{}"


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


def test_a_writable_package_needs_no_cache_folder(package):
    assert keep_bytecode(package) is None
    assert sys.pycache_prefix is None


@pytest.fixture
def place(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the bytecode of a read-only package is kept."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != package)
    return package.parent / "cache" / "vllm_cli" / "bytecode"


def test_bytecode_of_a_read_only_package_goes_to_the_cache_folder(package, place):
    assert str(place) in (keep_bytecode(package) or "")
    assert sys.pycache_prefix == os.environ["PYTHONPYCACHEPREFIX"] == str(place)
    assert place.stat().st_mode & 0o777 == 0o700
    assert keep_bytecode(package) is None


@pytest.mark.parametrize("kind", ["folder of others", "link"])
def test_a_cache_folder_that_others_can_write_to_or_a_link_in_its_place_is_not_used(kind, package, place):
    place.parent.mkdir(parents=True)
    if kind == "link":
        place.symlink_to(package.parent)
    else:
        place.mkdir()
        place.chmod(0o775)
    told = f"{place} is a link" if kind == "link" else f"other users can write to {place} (mode 0775)"
    assert f"{told}: remove it" in (keep_bytecode(package) or "")
    assert sys.pycache_prefix is None
    assert "PYTHONPYCACHEPREFIX" not in os.environ


def test_with_pythondontwritebytecode_the_cache_folder_is_used(package, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    place = package.parent / "cache" / "vllm_cli" / "bytecode"
    assert f"PYTHONDONTWRITEBYTECODE is set: they are kept in {place}" in (keep_bytecode(package) or "")
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (str(place), False)
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
    code = "import vllm, sys; print(sys.modules['vllm'].__cached__)"
    found = python_output(code, cwd=package.parent).strip()
    assert Path(found).is_file() and found.startswith(str(place))
    assert not (package / "__pycache__").exists()


def test_a_compiled_package_needs_no_warning(package, monkeypatch):
    py_compile.compile(str(package / "__init__.py"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert keep_bytecode(package) is None


def test_kept_bytecode_is_used_from_the_first_modules_on(package, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    place = package.parent / "cache" / "vllm_cli" / "bytecode"
    use_kept_bytecode(package)
    assert sys.pycache_prefix is None  # nothing is kept yet
    place.mkdir(mode=0o700, parents=True)
    use_kept_bytecode(package)
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (str(place), False)
    assert keep_bytecode(package) is None
