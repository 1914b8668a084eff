"""Paths of requests with final slashes. vLLM redirects such requests to the path without them."""

from collections.abc import Container


def without_final_slash(path: str, known: Container[str]) -> str:
    """Removes the final slashes of a path, but only if the rest is a known path."""
    bare = path.rstrip("/")
    return bare if bare in known else path
