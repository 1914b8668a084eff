"""vLLM's module for downloads. The fake vLLM downloads nothing."""

import aiohttp  # noqa: F401
