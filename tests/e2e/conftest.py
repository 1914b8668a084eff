"""Fixtures that start `vllm-cli serve` with the real model, as a user does."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest
from openai import OpenAI

from tests.e2e.server_process import ServerProcess

MODEL_NAME = "smol"


class StartServer(Protocol):
    """Starts a server that stops at the end of the `with` block."""

    def __call__(
        self, *arguments: str, wait: bool = True, environment: Mapping[str, str] | None = None
    ) -> AbstractContextManager[ServerProcess]: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests in this folder as thorough, except for smoke tests, which `make test` runs."""
    for item in items:  # all tests of the run
        if item.nodeid.startswith("tests/e2e/"):
            item.add_marker(pytest.mark.thorough)


def _starter(model: Path) -> StartServer:
    def start(
        *arguments: str, wait: bool = True, environment: Mapping[str, str] | None = None
    ) -> AbstractContextManager[ServerProcess]:
        words = [str(model), "--served-model-name", MODEL_NAME, *arguments]
        return ServerProcess(words, wait=wait, environment=environment)

    return start


@pytest.fixture(scope="session")
def start_server(model_path: Path) -> StartServer:
    """Starts a server with the given arguments."""
    return _starter(model_path)


@pytest.fixture(scope="session")
def start_tiny_server(tiny_llama: Path) -> StartServer:
    """Starts a server with a tiny, fast model, for tests that need no real text and no long stream."""
    return _starter(tiny_llama)


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Iterator[ServerProcess]:
    """One server, shared by the tests that do not stop it."""
    with start_server("--max-num-seqs", "40", "--max-model-len", "2048") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    """The OpenAI client, connected to the shared server or to the module's own `server`."""
    with server.openai() as openai:
        yield openai
