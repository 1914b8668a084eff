"""Files are looked up in the cache folder, then in a baked folder that no other user can have changed.

vLLM's cache folder gets files from the baked folder. Bytecode is kept in the right place.
"""

import os
import py_compile
import sys
from pathlib import Path

import pytest

from startup.reports.timeline.history import StartRecord, read_history, record_start
from startup.storage import caches as baked_module
from startup.storage.caches import (
    BYTECODE,
    CACHE,
    _examine,
    add_baked_inspections,
    find_baked,
    keep_bytecode,
    use_baked_bytecode,
    use_kept_bytecode,
    why_not_trusted,
)
from tests.support.cli import python_output

_STRANGER = 4711
_NAME = "modelinfos/llama.json"


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_baked_starts_are_the_history_until_the_user_has_started(baked, monkeypatch):
    with monkeypatch.context() as build:
        build.setenv("VLLM_CACHE_ROOT", str(baked / CACHE))
        record_start("k", StartRecord(total_s=9.0, spans={}))
    before = _snapshot(baked)
    assert read_history("k").total_s == 9.0  # type: ignore[union-attr]
    record_start("k", StartRecord(total_s=3.0, spans={}))
    assert read_history("k").total_s == 3.0  # type: ignore[union-attr]
    assert _snapshot(baked) == before


def test_baked_bytecode_is_read_and_nothing_is_written(baked, monkeypatch):
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert not use_baked_bytecode()
    (baked / BYTECODE).mkdir()
    monkeypatch.setattr(sys, "pycache_prefix", "/own")
    assert not use_baked_bytecode(), "the user's own cache of bytecode stays"
    monkeypatch.setattr(sys, "pycache_prefix", None)
    assert use_baked_bytecode()
    assert sys.pycache_prefix == os.environ["PYTHONPYCACHEPREFIX"] == str(baked / BYTECODE)
    assert sys.dont_write_bytecode
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"


@pytest.mark.parametrize(
    ("named", "fixed", "is_found", "problem"),
    [
        ("{baked}", "/nonexistent", True, None),
        (None, "{baked}", True, None),
        ("off", "{baked}", False, None),
        ("", "/nonexistent", False, None),
        ("{baked}/..", "{baked}", False, "was not written by `vllm-cli bake`"),
    ],
    ids=["named", "fixed path", "off", "none", "not baked"],
)
def test_the_named_folder_or_else_the_fixed_path_is_used(named, fixed, is_found, problem, baked, monkeypatch):
    monkeypatch.delenv("VCLI_BAKED")
    if named is not None:
        monkeypatch.setenv("VCLI_BAKED", named.format(baked=baked))
    monkeypatch.setattr(baked_module, "FIXED_PATH", Path(fixed.format(baked=baked)))
    found = find_baked()
    assert found.folder == (baked if is_found else None)
    assert (problem or "None") in str(found.problem)


@pytest.mark.parametrize(
    ("part", "mode"), [(".", 0o770), ("manifest.json", 0o707), (CACHE, 0o770), (BYTECODE, 0o707), ("..", 0o777)]
)
def test_a_part_that_others_can_write_to_is_not_trusted(baked, part, mode):
    (baked / BYTECODE).mkdir()
    (baked / part).chmod(mode)
    _examine.cache_clear()
    found = find_baked()
    assert found.folder is None
    assert f"other users can write to {(baked / part).resolve()} (mode {mode:04o})" in str(found.problem)


def test_a_parent_in_which_nobody_can_rename_entries_of_others_is_trusted(baked):
    baked.parent.chmod(0o1777)  # as /tmp
    assert why_not_trusted(baked, os.geteuid()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_must_be_root_or_this_user(baked):
    assert why_not_trusted(baked, _STRANGER) is None  # root's
    os.chown(baked, _STRANGER, -1)
    assert why_not_trusted(baked, _STRANGER) is None
    assert f"belongs to another user ({_STRANGER})" in str(why_not_trusted(baked, 0))


@pytest.fixture
def root(baked: Path) -> Path:
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


def test_a_writable_or_compiled_package_needs_no_cache_folder_and_no_warning(package, monkeypatch):
    assert keep_bytecode(package) is None
    assert sys.pycache_prefix is None
    py_compile.compile(str(package / "__init__.py"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert keep_bytecode(package) is None


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


def test_cached_bytecode_is_used_from_the_first_modules_on(package, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    place = package.parent / "cache" / "vllm_cli" / "bytecode"
    use_kept_bytecode(package)
    assert sys.pycache_prefix is None  # nothing is kept yet
    place.mkdir(mode=0o700, parents=True)
    use_kept_bytecode(package)
    assert (sys.pycache_prefix, sys.dont_write_bytecode) == (str(place), False)
    assert keep_bytecode(package) is None
