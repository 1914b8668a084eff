"""A start reports whether vLLM loads or compiles its model, and why. A folder shares compiled models."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.startup.vllm.fake_start import FakeStart, environment, run_fake
from tests.support.ports import free_port

pytestmark = pytest.mark.thorough


class Starts:
    """Starts of one model. Each start reports whether it has loaded or compiled the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text('{"architectures": ["FakeForCausalLM"], "hidden_size": 8}')
        self.log = ""

    def run(
        self, *words: object, cache: str = "cache", logged: str = "ready after", **variables: str
    ) -> dict[str, Any]:
        """Runs a start until its compiled model is recorded and the text is logged. Returns its report."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        given = (str(self.model), "--startup-report", str(report), *map(str, words))
        with FakeStart(self.folder, *given, env=self._environment(cache, variables)) as start:
            start.wait_ready()
            start.wait_logged(logged)
            start.wait(report.exists)
            told: dict[str, Any] = json.loads(report.read_text())["compiled_model"]
            if told["state"] == "compiled":
                start.wait(lambda: len(self.records(cache)) == len(self.entries(cache)))
            self.log = start.log
        assert f"compiled model: {told['text']}" in self.log
        return told

    def fail(self, *words: object, **variables: str) -> str:
        """Runs a start that fails. Returns its standard error."""
        given = (str(self.model), "--port", str(free_port()), *map(str, words))
        done = run_fake(self.folder, *given, env=self._environment("cache", variables))
        assert done.returncode == 3, done.stderr
        return done.stderr

    def entries(self, cache: str = "cache") -> list[Path]:
        return list((self.folder / cache / "torch_compile_cache" / "torch_aot_compile").glob("*/rank_0_0/model"))

    def records(self, cache: str = "cache") -> list[Path]:
        return list((self.folder / cache / "vllm_cli" / "compiled").glob("*.json"))

    def _environment(self, cache: str, variables: dict[str, str]) -> dict[str, str]:
        return environment(self.folder, FAKE_VLLM_COMPILES="1", VLLM_CACHE_ROOT=str(self.folder / cache), **variables)


@pytest.fixture
def starts(folder: Path) -> Starts:
    return Starts(folder)


def test_a_damaged_file_is_compiled_again(starts):
    starts.run()
    (entry,) = starts.entries()
    entry.write_bytes(b"damaged")
    assert "vLLM could not load the compiled model: " in starts.run()["reason"]
    assert starts.run()["state"] == "loaded"


def test_other_hardware_does_not_load_what_is_here(starts):
    """Nor does it remove compiled models of this hardware, because both machines may share a home folder."""
    starts.run()
    (entry,), (record,) = starts.entries(), starts.records()
    first = record.parent / "hardware"
    name = first.read_text()
    record.write_text(record.read_text().replace('"machine": "', '"machine": "other-'))
    first.write_text("other")
    change = starts.run()["difference"]
    assert (change["kind"], change["name"], change["before"][:6]) == ("hardware", "machine", "other-")
    assert starts.run()["state"] == "loaded"
    assert {*starts.entries()} > {entry}
    first.write_text(name)
    record.write_text(record.read_text().replace('"machine": "other-', '"machine": "'))
    assert starts.run()["state"] == "loaded"
    assert len(starts.entries()) == len(starts.records()) == 2


@pytest.mark.parametrize("place", ["/nowhere/at/all", "/dev/null", "s4://bucket"])
def test_a_location_that_cannot_be_used_is_a_warning(place, starts):
    assert starts.run("--compile-cache", place)["state"] == "compiled"
    assert f"{place}" in next(line for line in starts.log.splitlines() if "compiled models: " in line)


def test_a_model_that_fails_twice_after_it_was_loaded_is_compiled_again(starts):
    """The failing model is not fetched from a location again. The new compiled model replaces its archive."""
    place = ("--compile-cache", starts.folder / "shared")
    starts.run(*place, logged="compiled models: added 1")
    (record,) = starts.records()
    created_at = json.loads(record.read_text())["created_at"]
    for _ in range(2):
        assert "out of luck" in starts.fail(*place, FAKE_VLLM_CRASH="compiled model:out of luck")
    assert "out of memory" in starts.fail(*place, FAKE_VLLM_CRASH="worker 0:out of memory")
    again = starts.run(*place, logged="compiled models: added 1")
    assert again["state"] == "compiled"
    assert "2 starts have failed after they had loaded" in again["reason"], starts.log
    assert "fetched" not in starts.log
    assert json.loads(record.read_text())["compile_s"] > 0
    assert len(list(place[1].glob("*/*.zip"))) == 1
    assert starts.run(*place, cache="second")["state"] == "loaded"
    (fetched,) = starts.records("second")
    assert json.loads(fetched.read_text())["created_at"] > created_at


def test_failures_after_the_compiled_model_was_used_are_not_its_fault(starts):
    starts.run()
    for _ in range(3):
        assert "no memory" in starts.fail(FAKE_VLLM_CRASH="cache blocks:no memory")
    assert starts.run()["state"] == "loaded"
