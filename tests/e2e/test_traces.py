"""OpenTelemetry traces, received by a collector; slow because the extra `otel` has to be installed."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli import run_cli
from tests.e2e.server_process import ServerProcess
from tests.http_answer import ask
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
RECEIVER = Path(__file__).with_name("otlp_receiver.py")
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FAST_EXPORT = {"OTEL_BSP_SCHEDULE_DELAY": "200"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which the extra is importable; it is installed in a separate folder."""
    import tomllib

    folder = tmp_path_factory.mktemp("otel")
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["otel"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--target", str(folder), *extra], check=True, timeout=280)
    return {"PYTHONPATH": str(folder)} | FAST_EXPORT


class Collector:
    """The process of otlp_receiver.py and the spans that it has received."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        self.port: int = json.loads(self._lines.readline())["port"]
        self.spans: list[dict[str, Any]] = []
        self.reading = threading.Thread(target=self._read, name="collector")
        self.reading.start()

    def wait_for(self, name: str) -> dict[str, Any]:
        """Waits for a span of the name; the first one."""
        wait_until(lambda: self.named(name))
        return self.named(name)[0]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]

    def children(self, span: dict[str, Any]) -> list[dict[str, Any]]:
        return [child for child in self.spans if child["parentSpanId"] == span["spanId"]]

    def _read(self) -> None:
        for line in self._lines:
            self.spans.append(json.loads(line))


@pytest.fixture
def collect(installed: dict[str, str]) -> Callable[[str], Any]:
    @contextmanager
    def start(kind: str) -> Iterator[Collector]:
        process = subprocess.Popen(
            [sys.executable, str(RECEIVER), kind], env=os.environ | installed, stdout=subprocess.PIPE, text=True
        )
        collector = Collector(process)
        try:
            yield collector
        finally:
            process.terminate()
            process.wait(60)
            collector.reading.join(60)
            collector._lines.close()

    return start


@pytest.fixture
def traced(model_path: Path, installed: dict[str, str]) -> Callable[[str], ServerProcess]:
    def start(endpoint: str) -> ServerProcess:
        words = [str(model_path), "--served-model-name", "smol", "--max-model-len", "512"]
        return ServerProcess([*words, "--otlp-traces-endpoint", endpoint], environment=installed)

    return start


def complete(server: ServerProcess, **options: Any) -> Any:
    with server.openai() as client:
        return client.completions.create(model="smol", prompt="The capital of France is", max_tokens=5, **options)


@pytest.mark.parametrize(("kind", "endpoint"), [("http", "http://127.0.0.1:{}/v1/traces"), ("grpc", "127.0.0.1:{}")])
def test_spans_of_a_request_and_of_the_start_are_received(collect, traced, kind: str, endpoint: str) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "one"}
    with collect(kind) as collector, traced(endpoint.format(collector.port)) as server:
        usage = complete(server, temperature=0, extra_headers=headers).usage
        request = collector.wait_for("llm_request")
        assert (request["traceId"], request["parentSpanId"]) == (TRACE_ID, PARENT_ID)
        assert request["kind"] == "SPAN_KIND_SERVER"
        attributes = request["attributes"]
        assert attributes["gen_ai.request.id"] == "cmpl-one"
        assert int(attributes["gen_ai.usage.prompt_tokens"]) == usage.prompt_tokens
        assert int(attributes["gen_ai.usage.completion_tokens"]) == 5
        assert request["resource"]["service.name"] == "vllm-cli"
        parts = ["decode", "prefill", "queue", "render"]
        wait_until(lambda: sorted(span["name"] for span in collector.children(request)) == parts)
        for child in collector.children(request):
            assert child["traceId"] == TRACE_ID
            assert request["begin_ns"] <= child["begin_ns"] <= child["end_ns"] <= request["end_ns"]

        start = collector.wait_for("startup")
        report = ask(f"{server.url}/startupz").json
        assert start["parentSpanId"] == ""
        assert (start["end_ns"] - start["begin_ns"]) / 1e9 == pytest.approx(report["total_s"], abs=1e-6)
        assert start["end_ns"] < request["begin_ns"]
        assert start["events"] == ["listening"]
        spans = sorted(span["name"] for span in report["spans"])
        wait_until(lambda: sorted(span["name"] for span in collector.children(start)) == spans)


def test_spans_that_are_not_sampled_are_not_sent(collect, traced) -> None:
    with collect("http") as collector, traced(f"http://127.0.0.1:{collector.port}/v1/traces") as server:
        complete(server, extra_headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
        complete(server, extra_headers={"traceparent": "nonsense", "X-Request-Id": "two"})
        request = collector.wait_for("llm_request")
        assert request["attributes"]["gen_ai.request.id"] == "cmpl-two"
        assert request["parentSpanId"] == ""
    assert len(collector.named("llm_request")) == 1


def test_the_last_spans_are_sent_when_the_server_exits(collect, model_path: Path, installed) -> None:
    lazy = installed | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with collect("http") as collector:
        words = [str(model_path), "--otlp-traces-endpoint", f"http://127.0.0.1:{collector.port}/v1/traces"]
        with ServerProcess([*words, "--served-model-name", "smol"], environment=lazy) as server:
            complete(server)
        collector.wait_for("llm_request")


def test_an_unreachable_collector_delays_no_request_and_no_exit(traced) -> None:
    with traced("http://127.0.0.1:9/v1/traces") as server:
        assert complete(server).usage.completion_tokens == 5
        assert server.terminate() == 0


def test_without_the_extra_the_start_fails_with_the_command_that_installs_it(model_path: Path) -> None:
    if _has_opentelemetry():
        pytest.skip("OpenTelemetry is installed in this environment")
    run = run_cli("serve", model_path, "--port", "0", "--otlp-traces-endpoint", "http://127.0.0.1:4318")
    assert run.returncode == 3
    assert "pip install '.[otel]'" in run.stderr


def _has_opentelemetry() -> bool:
    from importlib.util import find_spec

    try:
        return find_spec("opentelemetry.sdk") is not None
    except ImportError:
        return False
