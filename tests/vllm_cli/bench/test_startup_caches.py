"""The caches are in the wanted state during a start, and restored after it."""

import os
import sys
from pathlib import Path

import pytest

from vllm_cli.bench.config import TargetSpec
from vllm_cli.bench.startup.caches import StartupCaches, find_libraries, find_models
from vllm_cli.bench.startup.config import StartupBenchConfig
from vllm_cli.errors import InputError


def config_of(**settings: object) -> StartupBenchConfig:
    return StartupBenchConfig(targets=(TargetSpec(name="A", command="true"),), **settings)


@pytest.fixture
def cache(tmp_path) -> Path:
    folder = tmp_path / "compiled"
    folder.mkdir()
    (folder / "kernel").write_text("warm")
    return folder


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_compile_cache_is_absent_during_the_start_and_restored(cache, tmp_path) -> None:
    caches = StartupCaches(config_of(states=("cold-compile",), compile_cache=cache))
    for _ in range(2):
        with caches.in_state("cold-compile") as stayed:
            assert stayed is None
            assert not cache.exists()
            cache.mkdir()
            (cache / "new").touch()
        assert contents(cache) == ["kernel"]
    assert contents(tmp_path) == ["compiled"]


def test_a_failed_start_restores_the_compile_cache(cache) -> None:
    caches = StartupCaches(config_of(states=("cold-compile",), compile_cache=cache))
    with pytest.raises(RuntimeError), caches.in_state("cold-compile"):
        raise RuntimeError
    assert contents(cache) == ["kernel"]


def test_the_next_benchmark_restores_the_compile_cache_of_a_killed_one(cache) -> None:
    caches = StartupCaches(config_of(states=("cold-compile",), compile_cache=cache))
    killed = caches.in_state("cold-compile")
    killed.__enter__()
    assert not cache.exists()
    StartupCaches(config_of(states=("cold-compile",), compile_cache=cache))
    assert contents(cache) == ["kernel"]


def test_a_missing_compile_cache_is_cold(tmp_path) -> None:
    caches = StartupCaches(config_of(states=("cold-compile",), compile_cache=tmp_path / "none"))
    with caches.in_state("cold-compile"):
        (tmp_path / "none").mkdir()
    assert contents(tmp_path) == ["none"]


def test_a_warm_start_moves_and_evicts_nothing(cache) -> None:
    caches = StartupCaches(config_of(states=("warm", "cold"), compile_cache=cache, evict_paths=(cache,)))
    with caches.in_state("warm") as stayed:
        assert stayed is None
        assert contents(cache) == ["kernel"]


def test_a_cold_start_finds_neither_pages_nor_compiled_code(cache, tmp_path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(100_000))
    caches = StartupCaches(config_of(states=("cold",), compile_cache=cache, evict_paths=(weights,)))
    with caches.in_state("cold") as stayed:
        assert stayed is not None
        assert stayed.total_bytes == 100_000
        assert not cache.exists()


def test_a_file_that_cannot_be_evicted_is_an_error_that_names_it(tmp_path) -> None:
    weights = tmp_path / "weights"
    weights.touch()
    caches = StartupCaches(config_of(states=("cold-pages",), evict_paths=(weights,)))
    weights.unlink()
    with pytest.raises(InputError, match=f"emptied of {weights}: No such file"), caches.in_state("cold-pages"):
        pass


def test_libraries_are_found_in_the_commands_environment() -> None:
    program = Path(sys.executable).with_name("vllm-cli")
    names = {file.name for file in find_libraries(f"A=1 {program} serve")}
    assert any(name.startswith("libtorch_cpu") for name in names)
    assert find_libraries("no-such-program x") == []
    assert find_libraries("") == []


def test_model_folders_are_found_in_a_command(tmp_path) -> None:
    (tmp_path / "config.json").touch()
    assert find_models(f"serve {tmp_path} --port 1 {os.devnull}") == [tmp_path]
