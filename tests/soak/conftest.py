"""How long a soak is: for hours with `make test-soak`, for a moment with `make test-slow`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known only to runs that name this folder; in others the tests take the same defaults."""
    parser.addoption("--minutes", type=float, default=0.7, help="duration of the load on a server")
    parser.addoption("--swaps", type=int, default=30, help="starts of models under a router")
    parser.addoption("--seed", type=int, default=0, help="seed of what clients and actors do")
