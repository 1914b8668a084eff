"""The paths that need no API key; standard library only."""

from typing import Final

READINESS_PATHS: Final = ("/health", "/ping", "/readyz")
PROBE_PATHS: Final = (*READINESS_PATHS, "/livez")
"""While the server is ready, the answers to all are the same."""
OPEN_PATHS: Final = frozenset(PROBE_PATHS)
"""Paths of probes, whose senders have no key."""
STATUS_PATHS: Final = frozenset({"/", "/status.json", "/startupz", "/metrics", "/load", "/version", "/openapi.json"})
"""Paths about the server, not about requests: open as in vLLM, unless `--api-key-everywhere` is set."""


def find_open_paths(*, is_key_everywhere: bool) -> frozenset[str]:
    """The paths that are answered without a key."""
    return OPEN_PATHS if is_key_everywhere else OPEN_PATHS | STATUS_PATHS
