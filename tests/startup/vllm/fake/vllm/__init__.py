"""A fake vLLM for tests: modules of the same names start the same processes in the same way.

Folders without code are namespace packages. Some modules record who imported them, as `IMPORTED_IN`.
"""

import os

import vllm.env_override  # noqa: F401 - patches modules that are imported later
from vllm._version import __version__ as __version__

IMPORTED_IN = os.getpid()
