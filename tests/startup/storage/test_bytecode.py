"""Bytecode is kept in the right place, and used only for the content from which it was made."""

import importlib
import os
import py_compile
import sys
from pathlib import Path

import pytest

from startup.storage.bytecode import check_by_content, keep_bytecode, use_kept_bytecode
from tests.support.cli import python_output
from tests.support.peer_vllm import ROOT


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


def test_a_writable_or_compiled_package_needs_no_cache_folder_and_no_warning(package, monkeypatch):
    assert keep_bytecode(package) is None
    assert sys.pycache_prefix is None
    py_compile.compile(str(package / "__init__.py"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert keep_bytecode(package) is None


@pytest.fixture
def place(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the bytecode of a read-only package is kept."""
    writer = importlib._bootstrap_external._code_to_timestamp_pyc  # type: ignore[attr-defined]
    monkeypatch.setattr("importlib._bootstrap_external._code_to_timestamp_pyc", writer)  # restored after the test
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != package)
    return package.parent / "cache" / "vllm_cli" / "checked-bytecode"


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


def test_with_pythondontwritebytecode_the_cache_folder_is_used(package, place, monkeypatch):
    """Programs of others only read it, because Python itself would write bytecode by time."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert f"PYTHONDONTWRITEBYTECODE is set: they are kept in {place}" in (keep_bytecode(package) or "")
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (str(place), False)
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"
    code = "import vllm, sys; print(sys.modules['vllm'].__cached__)"
    found = Path(python_output(code, cwd=package.parent).strip())
    assert found.is_relative_to(place)
    assert not found.exists()
    resume = "from startup.storage.bytecode import resume_keeping_bytecode\nresume_keeping_bytecode()\n"
    python_output(resume + code, cwd=package.parent, environment={"PYTHONPATH": str(ROOT)})
    assert found.read_bytes()[4:8] == b"\3\0\0\0", "it is valid for one content"
    assert not (package / "__pycache__").exists()


def test_cached_bytecode_is_used_from_the_first_modules_on(package, place, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    use_kept_bytecode(package)
    assert sys.pycache_prefix is None  # nothing is kept yet
    place.mkdir(mode=0o700, parents=True)
    use_kept_bytecode(package)
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (str(place), False)
    assert keep_bytecode(package) is None


def test_a_python_without_the_function_that_is_replaced_keeps_nothing(package, place, monkeypatch):
    monkeypatch.delattr("importlib._bootstrap_external._code_to_timestamp_pyc")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "so every start compiles them: Python 3." in (keep_bytecode(package) or "")
    assert sys.pycache_prefix is None


def test_bytecode_by_time_is_made_valid_for_one_content(tmp_path):
    """As `vllm-cli bake` does with what a start has written into PYTHONPYCACHEPREFIX."""
    source, folder = tmp_path / "toy.py", tmp_path / "bytecode"
    run = "import toy; print(toy.LIMIT)"
    variables = {"PYTHONPATH": str(tmp_path), "PYTHONPYCACHEPREFIX": str(folder), "PYTHONDONTWRITEBYTECODE": ""}
    source.write_text("LIMIT = 100\n")
    (tmp_path / "gone.py").write_text("")
    os.utime(source, (1_700_000_000, 1_700_000_000))
    python_output(f"{run}\nimport gone", environment=variables)
    (tmp_path / "gone.py").unlink()
    check_by_content(folder)
    [kept] = [path for path in folder.rglob("*.pyc") if path.is_relative_to(folder / tmp_path.relative_to("/"))]
    before = kept.read_bytes()
    assert python_output(run, environment=variables) == "100\n"
    assert kept.read_bytes() == before
    source.write_text("LIMIT = 999\n")
    os.utime(source, (1_700_000_000, 1_700_000_000))
    assert python_output(run, environment=variables) == "999\n"
