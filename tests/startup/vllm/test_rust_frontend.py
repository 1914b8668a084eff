"""vLLM's Rust frontend takes over the port from the responder when engines register."""

import os
import signal
from pathlib import Path

import pytest

from startup.vllm.serving.server_context import ServerContext
from startup.vllm.serving.serving_events import ServingEvents
from startup.vllm_words.installed import InstalledVllm, missing_rust_frontend
from tests.startup.vllm.fake_frontend import rust_variables
from tests.startup.vllm.fake_start import FAKE, FakeStart, environment, unforkable
from tests.support.http_client import RawClient
from tests.support.openai_client import StreamReader
from tests.support.processes import stopped
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough
_NUM_REQUESTS = 200


def _start(folder: Path, *words: str, fake: Path = FAKE, **variables: str) -> FakeStart:
    return FakeStart(folder, *words, env=environment(folder, fake, **rust_variables(folder), **variables))


def _frontend(start: FakeStart) -> int:
    (process,) = [each for each in start.family() if "--listen-fd" in each.cmdline()]
    return process.pid


def test_clients_wait_while_the_frontend_has_the_port_and_does_not_accept_yet(folder):
    gate = folder / "gate"
    with _start(folder, FAKE_FRONTEND_GATE=str(gate)) as start:
        start.wait_logged("the frontend waits")
        wait_until(lambda: start.responders() == [])
        with RawClient(start.port) as client:
            client.get("/health")
            assert "ready after" not in start.log
            gate.touch()
            assert client.read().status == 200
        start.wait_logged("ready after")


def test_sigterm_finishes_streams_and_frees_the_port(folder):
    with _start(folder) as start:
        start.wait_ready().wait_logged("ready after")
        stream = StreamReader(start.url, _NUM_REQUESTS)
        with stopped(start.named("VLLM::EngineCor").pid):  # the stream must not end before
            os.kill(start.process.pid, signal.SIGTERM)
            wait_until(lambda: start.health() == 0)
        *tokens, end = stream.finish()
        assert (len(tokens), end) == (_NUM_REQUESTS, None)
        assert start.process.wait(60) == 0


def test_a_second_signal_ends_the_drain(folder):
    with _start(folder, "--shutdown-timeout", "600") as start:
        start.wait_ready().wait_logged("ready after")
        with RawClient(start.port) as client:
            client.post("/v1/completions", {"prompt": "A text", "max_tokens": 1_000_000, "stream": True}).read_head()
            os.kill(start.process.pid, signal.SIGTERM)
            wait_until(lambda: start.health() == 0)
            start.signal_again()
            assert start.process.wait(60) == 0


@pytest.mark.parametrize(
    ("find", "named"),
    [(_frontend, "Process RustFrontend"), (lambda start: start.named("VLLM::EngineCor").pid, "EngineCore")],
    ids=["frontend", "engine"],
)
def test_the_end_of_a_process_ends_the_server_with_a_digest(find, named, folder):
    with _start(folder) as start:
        start.wait_ready().wait_logged("ready after")
        os.kill(find(start), signal.SIGKILL)
        assert start.process.wait(60) == 1
        start.wait_all_gone()
        assert named in start.log[start.log.index("Error: ") :]


def test_an_engine_that_cannot_be_forked_lets_vllm_start_plainly(folder):
    """As a new program, the engine could not request the port."""
    with _start(folder, fake=unforkable(folder)) as start:
        start.wait_ready()
        assert start.responders() == []
        assert start.complete("A text") == "A text was read by worker 0"
        assert "starts again without preloading" in start.lines_with("WARNING")[-1]


@pytest.mark.parametrize(
    ("messages", "calls"),
    [
        (b"s\x01r\x01", ["serving", "ready"]),
        (b"s\x02r\x01", ["ready"]),
        (b"s\x02s\x02r\x01", ["serving", "ready"]),
        (b"s\x02s\x02s\x02r\x01", ["serving", "ready"]),
    ],
    ids=["one", "one-of-two", "two", "one-later"],
)
def test_the_last_engine_gets_the_port_for_all(messages, calls):
    called: list[str] = []
    events = ServingEvents(
        on_serving=lambda: called.append("serving"),
        on_ready=lambda: called.append("ready"),
        on_stopping=lambda: None,
        context=ServerContext(record=None, watchdog_timeout_s=0),
    )
    os.write(events.child_link.event_fd, messages)
    events._follow_children()
    assert called == calls


@pytest.mark.parametrize(
    ("version", "value", "path", "problem"),
    [
        ("0.33.0", "1", "auto", "is not executable: chmod +x "),
        ("0.33.0", "1", "PACKAGE/vllm-rs", "is not executable: chmod +x "),
        ("0.33.0", "1", "PACKAGE/absent", "is missing: name it with VLLM_RUST_FRONTEND_PATH"),
        ("0.33.0", "1", "sh", None),
        ("0.33.0", "0", "auto", None),
        ("0.33.0", "yes", "auto", None),
        ("0.29.0", "1", "auto", None),
    ],
    ids=["package", "path", "absent", "on-PATH", "off", "no-number", "older"],
)
def test_a_program_that_cannot_be_executed_is_told_before_the_start(version, value, path, problem, folder, monkeypatch):
    (folder / "vllm-rs").touch()
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", value)
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", path.replace("PACKAGE", str(folder)))
    found = missing_rust_frontend(InstalledVllm(version, folder))
    assert (found is not None and problem is not None and problem in found) or (found, problem) == (None, None)
