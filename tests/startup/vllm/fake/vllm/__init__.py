"""A package of vLLM's process shape, for tests: the same modules start the same processes in the same way.

Each module notes in which process it was imported, as `IMPORTED_IN`.
"""

import os

import vllm.env_override  # noqa: F401 - patches what is imported later
from vllm._version import __version__ as __version__

IMPORTED_IN = os.getpid()
