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
        self.write_config(hidden_size=8)
        self.log = ""

    def write_config(self, **fields: int) -> None:
        (self.model / "config.json").write_text(json.dumps({"architectures": ["FakeForCausalLM"], **fields}))

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
        hidden = {"VLLM_HASHED_API_KEY": "hidden-word", "VLLM_HASHED_URL": "http://me:hidden-word@host"}
        own = {"FAKE_VLLM_COMPILES": "1", "VLLM_HASHED_HOST": "10.0.0.1", "VLLM_CACHE_ROOT": str(self.folder / cache)}
        return environment(self.folder, **{**hidden, **own, **variables})


@pytest.fixture
def starts(folder: Path) -> Starts:
    return Starts(folder)


def test_a_start_says_why_it_compiles(starts):
    first = starts.run()
    assert first["state"] == "compiled"
    assert f"{starts.folder}/cache has no compiled model for it yet" in first["reason"]
    assert starts.run()["text"].startswith("loaded in ")
    assert "hidden-word" not in starts.records()[0].read_text()

    (change,) = starts.run(VLLM_HASHED_HOST="10.0.0.2")["changes"]
    assert change == {"kind": "variables", "name": "VLLM_HASHED_HOST", "before": "10.0.0.1", "now": "10.0.0.2"}
    (change,) = starts.run(FAKE_VLLM_SEQS="9")["changes"]
    assert change == {"kind": "flags", "name": "SchedulerConfig.max_num_seqs", "before": "8", "now": "9"}
    starts.write_config(hidden_size=16)
    (change,) = starts.run()["changes"]
    assert change == {"kind": "model", "name": "ModelConfig.hf_config.hidden_size", "before": "8", "now": "16"}


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
    (change,) = [each for each in starts.run()["changes"] if each["kind"] == "hardware"]
    assert (change["name"], change["before"][:6]) == ("machine", "other-")
    assert starts.run()["state"] == "loaded"
    assert {*starts.entries()} > {entry}
    first.write_text(name)
    record.write_text(record.read_text().replace('"machine": "other-', '"machine": "'))
    assert starts.run()["state"] == "loaded"
    assert len(starts.entries()) == len(starts.records()) == 2


def test_require_ends_a_start_that_would_compile(starts):
    log = starts.fail("--compile-cache", "require")
    assert "no compiled model fits, and --compile-cache require forbids compiling" in log
    assert not starts.entries()
    starts.run()
    assert starts.run("--compile-cache", "require")["state"] == "loaded"
    assert "SchedulerConfig.max_num_seqs was 8, is 9" in starts.fail("--compile-cache", "require", FAKE_VLLM_SEQS="9")


def test_a_machine_loads_what_another_one_has_added(starts):
    place = starts.folder / "shared"
    starts.run("--compile-cache", place, logged="compiled models: added 1")
    (archive,) = place.glob("*/*.zip")
    inode = archive.stat().st_ino
    assert starts.run("--compile-cache", f"{place},require", cache="second")["state"] == "loaded"
    assert "compiled models: fetched 1" in starts.log
    assert starts.run("--compile-cache", place, cache="second")["state"] == "loaded"
    assert "fetched" not in starts.log
    assert archive.stat().st_ino == inode


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
