"""Real vLLM with compiled models in a shared location. Each folder of caches represents a machine."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.vllm_engine.compiled_start import PEERS, compiled_keys, start_and_end


class Filled(NamedTuple):
    """A machine that has compiled a model, and the location with the model's archive."""

    folder: Path
    location: Path


def _archives(location: Path) -> list[Path]:
    return sorted(location.glob("*/*.zip"))


@pytest.fixture(scope="module")
def filled(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A filled location. Also checks that the first start with an empty location adds its archive."""
    folder, location = tmp_path_factory.mktemp("machine"), tmp_path_factory.mktemp("location") / "shared"
    told = start_and_end(folder, small_model, "--compile-cache", location, until=lambda _: _archives(location))
    assert told.compiled["state"] == "compiled"
    assert not told.warnings("compiled model")
    return Filled(folder, location)


@pytest.mark.parametrize(
    ("launcher", "suffix"), [pytest.param("ours", "", marks=pytest.mark.ci_vllm), ("ours", ",require"), ("warm", "")]
)
def test_the_first_start_of_another_machine_loads(launcher, suffix, filled, small_model, tmp_path):
    words = ("--compile-cache", f"{filled.location}{suffix}")
    told = start_and_end(tmp_path, small_model, *words, launcher=launcher)
    assert (told.code, told.compiled["state"]) == (None, "loaded")
    assert told.compiled["saved_s"] > 1
    assert "compiled models: fetched 1" in told.log
    assert not told.warnings("compiled model")
    assert compiled_keys(tmp_path) == compiled_keys(filled.folder)
    assert len(_archives(filled.location)) == 1


def test_two_versions_share_a_location_and_a_cache(filled, small_model, tmp_path):
    if not PEERS["0.33"].exists():
        pytest.skip("vLLM 0.33 is not installed")
    location = shutil.copytree(filled.location, tmp_path / "shared")
    shutil.copytree(filled.folder / "cache", tmp_path / "cache")
    words = ("--compile-cache", location)
    told = start_and_end(tmp_path, small_model, *words, version="0.33", until=lambda _: len(_archives(location)) == 2)
    assert told.compiled["state"] == "compiled"
    assert told.changes == {("versions", "vllm")}
    for version in ("0.32", "0.33"):
        for folder in (tmp_path, tmp_path / version):
            folder.mkdir(exist_ok=True)
            told = start_and_end(folder, small_model, *words, version=version)
            assert (told.code, told.compiled["state"]) == (None, "loaded"), (version, folder)
    assert len(_archives(location)) == 2
