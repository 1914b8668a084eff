"""What both HTTP servers count of requests: bounds of histograms, a status. Standard library only."""

from typing import Final

HTTP_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip
"""Bounds in seconds, as in vLLM's `http_request_duration_highr_seconds`."""
CLIENT_GONE: Final = 499
"""The status that is counted if the client leaves before its response is complete."""
