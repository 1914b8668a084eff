"""Files are looked up in the cache folder, then in a baked folder that no other user can have changed.

vLLM's cache folder gets files from the baked folder.
"""

import os
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
    use_baked_bytecode,
    why_not_trusted,
)

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
