"""The drain after SIGTERM: running requests finish, new ones get a 503, and every request gets a response."""

import http.client
import json
import signal

import pytest

from tests.e2e.process_tree import wait_process
from tests.e2e.stream_reader import StreamReader

_GONE_S = 60.0
_BODY = json.dumps({"prompt": "Once", "max_tokens": 1})
_JSON = {"Content-Type": "application/json"}


def _exchange(connection: http.client.HTTPConnection, method: str, path: str) -> http.client.HTTPResponse:
    connection.request(method, path, _BODY if method == "POST" else None, _JSON)
    response = connection.getresponse()
    response.read()
    return response


def test_port_stays_open_for_the_grace_and_answers_503_with_retry_after(start_tiny_server):
    with start_tiny_server("--drain-grace", "600", environment={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}) as server:
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        assert _exchange(kept, "GET", "/health").getheader("connection") is None
        server.process.send_signal(signal.SIGTERM)
        for method, path in (("GET", "/readyz"), ("GET", "/health"), ("POST", "/v1/completions")):
            server.wait_unready()
            fresh = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            response = _exchange(fresh, method, path)
            assert response.status == 503
            assert response.getheader("retry-after") == "1"
            assert response.getheader("connection") == "close"
            fresh.close()
        rejected = _exchange(kept, "POST", "/v1/completions")
        assert (rejected.status, rejected.getheader("connection")) == (503, "close")
        assert kept.sock is None  # http.client has closed it because of the header
        live = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        assert _exchange(live, "GET", "/livez").status == 200
        assert server.terminate() == 0  # the second signal ends the drain


def _begin_request(port: int) -> http.client.HTTPConnection:
    """Sends a request without the end of its body."""
    slow = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    slow.putrequest("POST", "/v1/completions")
    slow.putheader("Content-Type", "application/json")
    slow.putheader("Content-Length", str(len(_BODY)))
    slow.endheaders(_BODY[:10].encode())
    return slow


def test_request_whose_body_is_still_being_sent_is_answered(start_tiny_server):
    with start_tiny_server("--shutdown-timeout", "200") as server:
        slow = _begin_request(server.port)
        server.wait_load(1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_unready()
        slow.send(_BODY[10:].encode())
        response = slow.getresponse()
        assert response.status == 200
        assert json.loads(response.read())["choices"]
        assert server.process.wait(_GONE_S) == 0


@pytest.mark.parametrize("timeout_s, num_signals", [("0.5", 1), ("100000", 2)], ids=["time-out", "second signal"])
def test_request_whose_body_never_ends_gets_a_503_and_does_not_delay_the_exit(
    start_tiny_server, timeout_s, num_signals
):
    with start_tiny_server("--shutdown-timeout", timeout_s, "--http-body-timeout", "100000") as server:
        slow = _begin_request(server.port)
        server.wait_load(1)
        for _ in range(num_signals):
            server.process.send_signal(signal.SIGTERM)
            server.wait_logged("shutting down: 1 requests")
        response = slow.getresponse()
        assert response.status == 503
        assert response.getheader("retry-after") == "1"
        assert json.loads(response.read())["status"] == "draining"
        assert server.process.wait(_GONE_S) == 0
        assert "Traceback" not in server.log


def test_engine_that_dies_in_a_drain_is_reported_and_not_restarted(start_server):
    with start_server("--shutdown-timeout", "100000", "--engine-restarts", "1") as server:
        reader = StreamReader(server.url, 4000)
        server.process.send_signal(signal.SIGTERM)
        server.wait_logged("shutting down: 1 requests")
        wait_process(server, "engine").kill()
        assert server.process.wait(_GONE_S) == 1
        events = reader.finish()
        assert any(event and "error" in event for event in events)
        assert events[-1] is None
        assert "another one is started" not in server.log
        assert "Traceback" not in server.log
