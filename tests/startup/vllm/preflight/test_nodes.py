"""Several nodes: the address of the first one, and Ray; nothing of it is an error."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.vllm.preflight import nodes
from startup.vllm.preflight.nodes import NodeChecks
from tests.startup.vllm.preflight.conftest import CheckStart

HEAD = "--nnodes 2 --master-addr"
ELSEWHERE = "192.0.2.1"
"""Kept free for documentation (RFC 5737)."""


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that knows two names."""
    known = {"head": ELSEWHERE, "me": "127.0.0.1", "127.0.0.1": "127.0.0.1", "0.0.0.0": "0.0.0.0"}

    def look_up(host: str, port: int, *, type: int) -> list[object]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (known[host], port))]

    monkeypatch.setattr(nodes.socket, "getaddrinfo", look_up)


def _messages(start: CheckStart, words: str) -> list[str]:
    found = list(NodeChecks(start("m", *words.split())).findings())
    assert {finding.severity for finding in found} <= {"warning"}
    return [finding.message for finding in found]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--nnodes 2", "--master-addr 127.0.0.1: other nodes cannot reach this address"),
        (f"{HEAD} me", "--master-addr me: other nodes cannot reach this address"),
        (f"{HEAD} head", "--master-addr head: no address of this node, which is the first one"),
        (f"{HEAD} nobody", "--master-addr nobody: this name is not known here"),
        (f"{HEAD} nobody --node-rank 1", "--master-addr nobody: this name is not known here"),
        (f"{HEAD} me --node-rank 1", "--master-addr me: an address of this node, which is not the first one"),
        ("--data-parallel-address me --headless", "--data-parallel-address me: an address of this node"),
        ("--data-parallel-address head", "--data-parallel-address head: no address of this node"),
    ],
)
def test_addresses_of_the_first_node(start: CheckStart, words: str, message: str) -> None:
    (found,) = _messages(start, words)
    assert found.startswith(message)


@pytest.mark.parametrize("words", ["", "--nnodes 1 --master-addr nobody", f"{HEAD} 0.0.0.0"])
def test_nothing_to_say(start: CheckStart, words: str) -> None:
    assert _messages(start, words) == []


def test_a_node_that_does_not_answer(start: CheckStart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_TIMEOUT_S", 0.1)
    monkeypatch.setattr(nodes, "_connection_problem", lambda _: nodes.threading.Event().wait(5) or "")
    (message,) = _messages(start, f"{HEAD} head --node-rank 1")
    assert message.startswith("--master-addr head: no answer within 0.1 s")


def test_a_node_that_does_not_listen_yet_is_there(start: CheckStart, port: int) -> None:
    connect = nodes._connection_problem
    assert connect((socket.AF_INET, 1, 6, "", ("127.0.0.1", port))) == ""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert connect((socket.AF_INET, 1, 6, "", unused.getsockname())) == ""


def test_the_address_of_ray(start: CheckStart, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    words = "--distributed-executor-backend ray"
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert _messages(start, words) == []
    monkeypatch.setenv("RAY_ADDRESS", "nobody:6379")
    assert _messages(start, words) == [
        "RAY_ADDRESS=nobody:6379: this name is not known here; check it, or give an IP address"
    ]
    assert _messages(start, "--distributed-executor-backend mp") == []
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert _messages(start, words) == []


@pytest.mark.parametrize(("has", "num_warnings"), [("2.9.3", 1), ("2.48.0", 0), ("2.100.0", 0)])
def test_the_version_of_ray(
    start: CheckStart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: Path, has: str, num_warnings: int
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").touch()
    own, needed = tmp_path / f"ray-{has}.dist-info", package.parent / "vllm-0.32.0.dist-info"
    for folder, line in ((own, f"Version: {has}"), (needed, "Requires-Dist: ray[cgraph]>=2.48.0")):
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\n{line}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    messages = _messages(start, "--data-parallel-backend ray")
    assert len(messages) == num_warnings
    for message in messages:
        assert message == "Ray 2.9.3 is installed, and this vLLM asks for 2.48.0 or newer: upgrade it"
