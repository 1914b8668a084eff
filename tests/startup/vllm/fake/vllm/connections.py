"""Downloads; the fake vLLM has none."""

import aiohttp  # noqa: F401
