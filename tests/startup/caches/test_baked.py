"""A baked folder is found, and used only if nobody else can have changed it."""

import os
from pathlib import Path

import pytest

from startup import caches as baked_module
from startup.caches import BYTECODE, CACHE, BakedFolder, _examine, find_baked, why_not_trusted

_STRANGER = 4711


def test_the_folder_that_the_variable_names_is_used(baked: Path) -> None:
    assert find_baked() == BakedFolder(baked)


def test_the_fixed_path_is_used_without_the_variable(baked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VCLI_BAKED")
    monkeypatch.setattr(baked_module, "FIXED_PATH", baked)
    assert find_baked() == BakedFolder(baked)


@pytest.mark.parametrize("value", ["off", ""])
def test_without_a_baked_folder_there_is_no_warning(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLI_BAKED", value)
    monkeypatch.setattr(baked_module, "FIXED_PATH", Path("/nonexistent/baked"))
    assert find_baked() == BakedFolder()


def test_a_named_folder_that_was_not_baked_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLI_BAKED", str(tmp_path))
    found = find_baked()
    assert found.folder is None
    assert "was not written by `vllm-cli bake`" in str(found.problem)


@pytest.mark.parametrize("part", [".", "manifest.json", CACHE, BYTECODE])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_part_that_others_can_write_to_is_not_trusted(baked: Path, part: str, mode: int) -> None:
    (baked / BYTECODE).mkdir()
    (baked / part).chmod(mode)
    _examine.cache_clear()
    found = find_baked()
    assert found.folder is None
    assert f"other users can write to {(baked / part).resolve()} (mode {mode:04o})" in str(found.problem)


def test_a_parent_that_others_can_write_to_is_not_trusted(baked: Path) -> None:
    baked.parent.chmod(0o777)
    assert "other users can write to" in str(why_not_trusted(baked, os.geteuid()))
    baked.parent.chmod(0o1777)  # as /tmp: nobody can rename the entries of others
    assert why_not_trusted(baked, os.geteuid()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_must_be_root_or_this_user(baked: Path) -> None:
    assert why_not_trusted(baked, _STRANGER) is None  # root's
    os.chown(baked, _STRANGER, -1)
    assert why_not_trusted(baked, _STRANGER) is None
    assert f"belongs to another user ({_STRANGER})" in str(why_not_trusted(baked, 0))
