"""Sets the length of a soak: hours with `make test-soak`, a short time with `make test-slow`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options. Runs that do not name this folder do not have them, and use the same defaults."""
    parser.addoption("--minutes", type=float, default=0.7, help="duration of the load on a server")
    parser.addoption("--seed", type=int, default=0, help="seed of what clients and actors do")
