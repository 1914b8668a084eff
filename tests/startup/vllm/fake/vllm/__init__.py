"""A fake vLLM for tests. Modules with vLLM's names start the same processes in the same way.

Folders without code are namespace packages. Some modules record in `IMPORTED_IN` which process imported them.
"""

import os

import vllm.env_override  # noqa: F401 - patches modules that are imported later
from vllm._version import __version__ as __version__

IMPORTED_IN = os.getpid()
