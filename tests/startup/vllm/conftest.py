"""Fixtures for tests with a fake vLLM."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import short_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a start's files; its path is short enough for Unix sockets."""
    with short_folder() as path:
        yield path
