"""Real files on a disk."""

from tests.startup.prefetch.conftest import make_file  # noqa: F401 - a fixture
