"""Downloads a model in a helper process. Begin with `download_process.py`, then read `worker.py`."""

from typing import Final

MOST_LISTING_BYTES: Final = 1 << 25
"""The longest listing of a hub, in bytes: 100,000 files, each with about 300 bytes."""
