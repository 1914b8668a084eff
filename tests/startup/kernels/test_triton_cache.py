"""Kernels are kept below VLLM_CACHE_ROOT, wherever vLLM has put them, unless the user has chosen a folder."""

import json
import os
from pathlib import Path

import pytest

from startup.kernels import triton_cache
from startup.kernels.triton_cache import bring, is_cached, keep, kept_folder, model_folders, usable_folders


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kernels below VLLM_CACHE_ROOT. The home folder is on the same file system."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "volume"))
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "volume" / "vllm_cli" / "triton"


@pytest.fixture
def of_triton(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".triton" / "cache"


def _write_kernel(cache: Path, key: str = "KEY") -> None:
    """Writes a kernel `k` as Triton does: the list of its files has absolute paths."""
    folder = cache / key
    folder.mkdir(parents=True)
    paths = {name: str(folder / name) for name in ("k.cubin", "k.json")}
    for path in paths.values():
        Path(path).write_bytes(b"kernel")
    (folder / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))


def _is_found_by_triton(cache: Path, key: str = "KEY") -> bool:
    """Whether Triton finds the kernel in this cache, and all files of its list in the kernel's folder."""
    group = cache / key / "__grp__k.json"
    paths = list(map(Path, json.loads(group.read_text())["child_paths"].values())) if group.exists() else []
    return bool(paths) and all(path.parent == cache / key and path.read_bytes() == b"kernel" for path in paths)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "volume/vllm_cli/triton"),
        ({"TRITON_HOME": "chosen"}, "chosen/.triton/cache"),
        ({"TRITON_HOME": "other", "TRITON_CACHE_DIR": "chosen"}, "chosen"),
    ],
)
def test_the_users_folder_takes_precedence(tmp_path, variables, expected):
    given = {name: str(tmp_path / value) for name, value in variables.items()}
    assert kept_folder(given) == tmp_path / expected
    assert usable_folders(given)[0] == str(tmp_path / expected)
    if given:
        assert len(usable_folders(given)) == 1, "kernels are looked for elsewhere"


@pytest.mark.parametrize(
    "place",
    [
        "home/.triton/cache",
        "volume/torch_compile_cache/torch_aot_compile/hash/inductor_cache/triton/0",
        "volume/torch_compile_cache/hash/rank_0_0/inductor_cache/triton/0",
        "volume/torch_compile_cache/hash/rank_0_0/triton_cache",
    ],
)
def test_a_used_kernel_is_kept_wherever_it_was_found(tmp_path, kept, place):
    for key in ("KEY", "UNUSED"):
        _write_kernel(tmp_path / place, key)
    keep(["KEY", "GONE", "../home"], {})
    assert [path.name for path in kept.iterdir()] == ["KEY"]
    assert _is_found_by_triton(kept)


def test_vllm_without_this_program_finds_kept_kernels_and_libraries(kept, of_triton):
    _write_kernel(kept)
    (kept / "LIBRARY").mkdir()
    (kept / "LIBRARY" / "cuda_utils.so").write_bytes(b"library")
    keep(["KEY"], {})
    assert _is_found_by_triton(of_triton)
    assert (of_triton / "KEY" / "k.cubin").samefile(kept / "KEY" / "k.cubin"), "it takes space twice"
    assert (of_triton / "LIBRARY" / "cuda_utils.so").samefile(kept / "LIBRARY" / "cuda_utils.so")


def test_on_another_file_system_only_what_is_kept_is_copied(kept, of_triton, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr(triton_cache, "_has_one_disk", lambda *_: False)
    _write_kernel(of_triton)
    _write_kernel(kept, "OWN")
    keep(["KEY", "OWN"], {})
    assert _is_found_by_triton(kept)
    assert not (of_triton / "OWN").exists(), "a home that ends with its pod is filled"


def test_a_kernel_is_not_found_before_all_its_files_are_there(kept, of_triton, monkeypatch):
    def stop(path: Path, _: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    _write_kernel(of_triton)
    monkeypatch.setattr(triton_cache, "_link", stop)
    with pytest.raises(OSError, match="No space"):
        bring("KEY", (of_triton,), kept)
    assert not is_cached(str(kept), "KEY", "k")


def test_the_folder_is_of_use_whatever_the_umask_is(kept):
    umask = os.umask(0o002)
    try:
        assert usable_folders({})[0] == str(kept)
    finally:
        os.umask(umask)


def test_kernels_that_others_can_change_are_not_used(kept, of_triton):
    _write_kernel(kept)
    kept.chmod(0o777)
    assert usable_folders({}) == (str(of_triton),)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_volume_that_cannot_be_written_to_is_still_read(is_there, kept, of_triton, monkeypatch):
    if is_there:
        _write_kernel(kept)
        own = str(kept)
        can_write = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != own and can_write(path, mode))
    else:
        kept.parent.mkdir(parents=True)
        kept.touch()
    assert usable_folders({}) == (str(of_triton), *[str(kept)] * is_there)


def test_without_any_folder_nothing_is_kept(kept, monkeypatch):
    kept.parent.parent.mkdir(parents=True)
    kept.parent.touch()
    monkeypatch.setenv("HOME", str(kept.parent))
    assert usable_folders({}) == ()
    keep(["KEY"], {})


def test_the_newest_models_are_searched_first(tmp_path):
    folders = [tmp_path / f"volume/torch_compile_cache/hash{number}/rank_0_0/triton_cache" for number in range(20)]
    for age_s, folder in enumerate(folders):
        folder.mkdir(parents=True)
        os.utime(folder, (1e9 - age_s, 1e9 - age_s))
    assert model_folders() == folders[:16]
