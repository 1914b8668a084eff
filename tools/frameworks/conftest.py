"""A server whose model answers as an agent does."""

from collections.abc import Iterator

import pytest

from tests.e2e.server_process import ServerProcess
from tools.frameworks.agent_model import save_agent_model
from tools.frameworks.clients.scenario import MEMORY, MODEL


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = save_agent_model(tmp_path_factory.mktemp("agent"), MEMORY)
    settings = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    greedy = ["--override-generation-config.temperature", "0"]
    with ServerProcess([str(folder), "--served-model-name", MODEL, *settings, *greedy]) as running:
        yield running
