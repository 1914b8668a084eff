"""Fixtures that start `vllm-cli serve` with the real model, as a user does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.server_process import ServerProcess

StartServer = Callable[..., ServerProcess]
"""Creates a server with further arguments, and with the options of `ServerProcess`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests in this folder as thorough, except for smoke tests, which `make test` runs."""
    for item in items:  # all tests of the run
        if item.nodeid.startswith("tests/e2e/"):
            item.add_marker(pytest.mark.thorough)


def _starter(model: Path) -> StartServer:
    def start(*arguments: str, **options: Any) -> ServerProcess:
        return ServerProcess([str(model), "--served-model-name", "smol", *arguments], **options)

    return start


@pytest.fixture(scope="session")
def start_server(model_path: Path) -> StartServer:
    """Starts a server with the given arguments."""
    return _starter(model_path)


@pytest.fixture(scope="session")
def start_tiny_server(tiny_llama: Path) -> StartServer:
    """Starts a server with a tiny, fast model, for tests that need no real text and no long stream."""
    return _starter(tiny_llama)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    """The OpenAI client, connected to the module's own `server`."""
    with server.openai() as openai:
        yield openai
