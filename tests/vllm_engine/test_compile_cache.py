"""Real vLLM with compiled models in a shared location. Each folder of caches represents a machine."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.vllm_engine.compiled_start import compiled_keys, start_and_end


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
