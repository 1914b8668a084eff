"""Metrics, `ps`, reports and the log tell how vLLM was started, and if and why its model was compiled."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from startup.vllm.serving.start_metrics import GraphProgress
from tests.startup.vllm.fake_start import FakeStart, environment, prepend, run_fake, variant
from tests.support.cli import run_cli
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough


def metrics(start: FakeStart) -> tuple[dict[str, str], dict[str, float]]:
    """The labels of `vllm_cli:start_info`, and the seconds of each phase, which vLLM's first metrics have."""
    bodies: list[bytes] = []

    def has_answered() -> bool:
        answer = start.ask("/metrics")  # not 200 while another API server creates its file of samples
        bodies.append(answer.body)
        return answer.status == 200

    wait_until(has_answered)
    samples = [sample for family in text_string_to_metric_families(bodies[-1].decode()) for sample in family.samples]
    (info,) = (sample.labels for sample in samples if sample.name == "vllm_cli:start_info")
    phases = [sample for sample in samples if sample.name == "vllm_cli:start_phase_seconds"]
    return info, {sample.labels["phase"]: sample.value for sample in phases}


def _noted(start: FakeStart) -> dict[str, object]:
    """The data of the start in `ps --json`."""
    (entry,) = (each for each in json.loads(run_cli("ps", "--json").stdout) if start.process.pid in each["pids"])
    return entry["start"]


def test_a_cold_start_tells_its_phases_and_why_it_has_compiled(folder, model):
    report = folder / "report.json"
    for host, compiled in (("1", "compiled"), ("1", "loaded"), ("2", "compiled")):
        env = environment(folder, VCLI_STANDBY="off", FAKE_VLLM_COMPILES="1", VLLM_HASHED_HOST=f"10.0.0.{host}")
        with FakeStart(folder, model, "--startup-report", str(report), env=env) as start:
            start.wait_ready().wait_logged("ready after")
            info, phases = metrics(start)
            assert (info["start_mode"], info["reason"], info["compile"]) == ("cold", "", compiled)
            assert {"api:import_vllm", "EngineCore:executor_init"} & phases.keys()
            wait_until(report.is_file)
            spans = {span["name"] for span in json.loads(report.read_text())["spans"]}
            assert {"preload_imports", "loading_cpu", "asyncmpclient_init"} <= spans
            noted = _noted(start)
            assert noted.items() >= info.items()
            assert noted["ready_s"] == pytest.approx(phases["total"], rel=0.01)
            reason = f": {info['compile_reason']}" if compiled == "compiled" else ""
            assert f" s (cold; model {compiled}{reason}): http://" in start.log
            wait_until(lambda: any(folder.glob("cache/vllm_cli/compiled/*.json")))
    assert info["compile_reason"] == "variables VLLM_HASHED_HOST"


def test_each_of_several_api_servers_tells_the_start(folder):
    with FakeStart(folder, "--api-server-count", "2") as start:
        start.wait_ready().wait_logged("ready after")
        info, phases = metrics(start)
        assert info["start_mode"] == "cold"
        pids = set()

        def has_asked_both() -> bool:
            pids.add(start.state()["server"]["pid"])
            assert metrics(start) == (info, phases)
            return len(pids) == 2

        wait_until(has_asked_both)


_NEVER_LEARNS = """
import sys, threading
if (learning := sys.modules.get("startup.vllm.launch.parts.records")) is not None:
    learning.learn_beside = lambda names: threading.Event().wait()
"""
"""Code for a module of the fake vLLM. With it, the work for later starts, seconds in a first one, hangs."""


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [((), {}), ((), {"VCLI_PROBE_PROCESS": "0"}), (("--api-server-count", "2"), {})],
    ids=["responder accepts", "vLLM accepts", "children accept"],
)
def test_all_places_tell_the_same_moment_of_readiness_in_a_first_start(folder, arguments, variables):
    report = folder / "report.json"
    fake = prepend(variant(folder), "entrypoints/cli/main", _NEVER_LEARNS)
    env = environment(folder, fake, VCLI_STANDBY="off", **variables)
    with FakeStart(folder, *arguments, "--startup-report", str(report), env=env) as start:
        _, phases = metrics(start.wait_ready())
        noted = _noted(start)["ready_s"]
        start.wait_logged("ready after")
        (logged,) = re.findall(r"ready after ([0-9.]+) s", start.log)
        start.wait(report.is_file)
        assert [phases["total"], float(logged)] == pytest.approx([noted, noted], abs=0.01)
        assert json.loads(report.read_text())["total_s"] == pytest.approx(noted, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "has_page"),
    [((), True), (("--no-web-page",), False), (("--no-web-page", "--web-page"), True)],
    ids=["default", "no page", "the last flag counts"],
)
def test_the_page_stays_while_vllm_serves(folder, arguments, has_page):
    with FakeStart(folder, *arguments, env=environment(folder)) as start:
        start.wait_ready()
        page, status = start.ask("/"), start.ask("/status.json").json
        assert (page.status, b"<title>vllm-cli" in page.body) == ((200, True) if has_page else (404, False))
        if has_page:
            assert "script-src 'sha256-" in page.headers["content-security-policy"]
            assert (status["status"], status["needs_key"], status["modalities"]) == ("ready", False, ["text"])
            assert status["live"]["memory_bytes"] > 0
            assert start.ask("/", {}).status in (404, 405), "a POST is vLLM's"
        assert ("/ is a page with a chat [--no-web-page]" in start.log) == has_page


def test_a_plain_start_tells_why(folder):
    with FakeStart(folder, env=environment(folder, VCLI_PLAIN_VLLM="1")) as start:
        start.wait_ready()
        info, phases = metrics(start)
        assert (info["start_mode"], info["reason"], phases) == ("plain", "VCLI_PLAIN_VLLM is set", {})
        assert _noted(start) == info
        assert "plain start: vLLM" in start.log
        assert f"{start.process.pid}: plain: VCLI_PLAIN_VLLM is set" in run_cli("ps").stdout


_CAPTURES = """
from startup.vllm.serving.start_metrics import GraphProgress
GraphProgress(1, 5, is_late=True).write(0)
"""


def test_reports_ps_and_metrics_show_cuda_graphs_until_all_are_captured_and_afterwards(folder, monkeypatch):
    report = folder / "report.json"
    env = environment(folder, prepend(variant(folder), "v1/worker/cpu_worker", _CAPTURES), VCLI_STANDBY="off")
    with FakeStart(folder, "--startup-report", str(report), env=env) as start:

        def shows(captured: int, state: str) -> bool:
            """Whether all places show the same."""
            shown = {"captured": captured, "total": 5, "state": state}
            places = [_noted(start), start.ask("/startupz").json, start.ask("/status.json").json["start"]]
            is_exported = f"vllm_cli:cuda_graphs_captured {captured}.0\n" in start.ask("/metrics").body.decode()
            return is_exported and [place.get("cuda_graphs") for place in places] == [shown] * len(places)

        start.wait_ready()
        start.wait(lambda: shows(1, "capturing"))
        start.wait(report.is_file)
        assert json.loads(report.read_text())["cuda_graphs"]["state"] == "capturing"
        (progress,) = folder.rglob("cuda-graphs-0.json")
        monkeypatch.setenv("VCLI_START_FOLDER", str(progress.parent))
        GraphProgress(5, 5, is_late=True).write(0)
        start.wait(lambda: shows(5, "complete"))
        assert start.ask("/status.json").json["status"] == "ready"


class Starts:
    """Starts of one model. Each start reports whether it has loaded or compiled the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text('{"architectures": ["FakeForCausalLM"], "hidden_size": 8}')
        self.log = ""

    def run(
        self, *arguments: object, cache: str = "cache", logged: str = "ready after", **variables: str
    ) -> dict[str, Any]:
        """Runs a start until its compiled model is recorded and the text is logged. Returns its report."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        given = (str(self.model), "--startup-report", str(report), *map(str, arguments))
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

    def fail(self, *arguments: object, **variables: str) -> str:
        """Runs a start that fails. Returns its standard error."""
        given = (str(self.model), "--port", str(free_port()), *map(str, arguments))
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


@pytest.mark.parametrize("place", ["/nowhere/at/all", "/dev/null"])
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
    assert len(list(place[1].glob("[0-9]*/*.zip"))) == 1
    assert starts.run(*place, cache="second")["state"] == "loaded"
    (fetched,) = starts.records("second")
    assert json.loads(fetched.read_text())["created_at"] > created_at


def test_failures_after_the_compiled_model_was_used_are_not_its_fault(starts):
    starts.run()
    for _ in range(3):
        assert "no memory" in starts.fail(FAKE_VLLM_CRASH="cache blocks:no memory")
    assert starts.run()["state"] == "loaded"
