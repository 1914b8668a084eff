"""vLLM's own caches are laid below the user's cache folder, and bytecode beside them."""

import os
import py_compile
import sys
from pathlib import Path

import pytest

from startup.caches import CACHE, Hardware, _examine
from startup.vllm.launch.baked_caches import COPIED_BYTES, add_baked_caches, keep_bytecode
from tests.startup.caches.conftest import baked, write_manifest  # noqa: F401 - a fixture

_SMALL = "modelinfos/llama.json"
_LARGE = "torch_compile_cache/hash/model"
_LARGE_BYTES = b"x" * (COPIED_BYTES + 1)


@pytest.fixture
def filled(baked: Path) -> Path:  # noqa: F811
    for name, content in ((_SMALL, b"{}"), (_LARGE, _LARGE_BYTES)):
        path = baked / CACHE / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return baked


@pytest.fixture
def root(filled: Path) -> Path:
    """The user's cache folder."""
    return filled.parent / "cache"


def test_small_files_are_copied_and_large_ones_are_linked(filled, root, tmp_path):
    assert add_baked_caches(tmp_path) is None
    assert (root / _SMALL).read_bytes() == b"{}"
    assert not (root / _SMALL).is_symlink()
    assert (root / _LARGE).readlink() == filled / CACHE / _LARGE


def test_what_the_user_has_stays_and_baked_files_are_never_written(filled, root, tmp_path):
    (root / _SMALL).parent.mkdir(parents=True)
    (root / _SMALL).write_text("mine")
    add_baked_caches(tmp_path)
    assert (root / _SMALL).read_text() == "mine"
    (root / _LARGE).unlink()
    (root / _LARGE).write_text("recompiled")
    add_baked_caches(tmp_path)
    assert (root / _LARGE).read_text() == "recompiled"
    assert (filled / CACHE / _LARGE).read_bytes() == _LARGE_BYTES


def test_a_second_start_looks_at_nothing(filled, root, tmp_path):
    add_baked_caches(tmp_path)
    (root / _SMALL).unlink()  # the user has deleted it
    add_baked_caches(tmp_path)
    assert not (root / _SMALL).exists()


def test_a_new_image_lays_its_own_and_removes_dead_links(filled, root, tmp_path):
    add_baked_caches(tmp_path)
    (filled / CACHE / _LARGE).unlink()
    (filled / CACHE / "modelinfos/qwen.json").write_text("{}")
    write_manifest(filled, bake_id="second")
    add_baked_caches(tmp_path)
    assert not os.path.lexists(root / _LARGE)
    assert (root / "modelinfos/qwen.json").exists()


def test_without_the_image_dead_links_are_removed(filled, root, tmp_path, monkeypatch):
    add_baked_caches(tmp_path)
    filled.rename(tmp_path / "gone")
    monkeypatch.setenv("VCLI_BAKED", "off")
    _examine.cache_clear()
    assert add_baked_caches(tmp_path) is None
    assert not os.path.lexists(root / _LARGE)
    assert (root / _SMALL).exists()


@pytest.mark.parametrize(
    ("hardware", "what"),
    [
        (Hardware("x86_64 other", Hardware.present().gpus), "processor"),
        (Hardware(Hardware.present().cpu, ("NVIDIA of the build",)), "GPU"),
    ],
    ids=["processor", "gpu"],
)
def test_compiled_code_of_other_hardware_is_not_used(hardware, what, filled, root, tmp_path):
    write_manifest(filled, hardware)
    notice = add_baked_caches(tmp_path)
    assert notice == f"the baked compile caches are not used: they were made on another {what}"
    assert (root / _SMALL).exists()
    assert not os.path.lexists(root / _LARGE)


def test_without_a_writable_cache_folder_the_start_has_one_of_its_own(filled, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file" / "cache"))
    session = tmp_path / "session"
    assert add_baked_caches(session) is None
    assert os.environ["VLLM_CACHE_ROOT"] == str(session / "cache")
    assert (session / "cache" / _LARGE).read_bytes() == _LARGE_BYTES


def test_an_unreadable_manifest_is_a_warning(filled, tmp_path):
    (filled / "manifest.json").write_text("{")
    assert "are not used" in str(add_baked_caches(tmp_path))


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
    """Where the bytecode of a read-only package is kept."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != package)
    return package.parent / "cache" / "vllm_cli" / "bytecode"


def test_bytecode_of_a_read_only_package_goes_to_the_cache_folder(package, place):
    assert str(place) in (keep_bytecode(package) or "")
    assert sys.pycache_prefix == os.environ["PYTHONPYCACHEPREFIX"] == str(place)
    assert place.stat().st_mode & 0o777 == 0o700
    assert keep_bytecode(package) is None


@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_a_cache_folder_that_others_can_write_to_is_not_used(mode, package, place):
    place.mkdir(parents=True)
    place.chmod(mode)
    assert f"other users can write to {place} (mode {mode:04o}): remove it" in (keep_bytecode(package) or "")
    assert sys.pycache_prefix is None
    assert "PYTHONPYCACHEPREFIX" not in os.environ


def test_the_warning_names_a_link_in_place_of_the_cache_folder(package, place):
    place.parent.mkdir(parents=True)
    place.symlink_to(package.parent)
    assert f"{place} is a link: remove it" in (keep_bytecode(package) or "")
    assert sys.pycache_prefix is None


def test_the_warning_names_pythondontwritebytecode(package, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "PYTHONDONTWRITEBYTECODE" in (keep_bytecode(package) or "")


def test_a_compiled_package_needs_no_warning(package, monkeypatch):
    py_compile.compile(str(package / "__init__.py"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert keep_bytecode(package) is None
