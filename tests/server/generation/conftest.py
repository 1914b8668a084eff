"""The tests in this folder run with completion requests and with chat requests."""

import pytest

from server.generation.request import ChatRequest, CompletionRequest
from tests.server.generation.requests import Model


@pytest.fixture(params=[CompletionRequest, ChatRequest])
def model(request: pytest.FixtureRequest) -> Model:
    """The class of each kind of request."""
    return request.param  # type: ignore[no-any-return]
