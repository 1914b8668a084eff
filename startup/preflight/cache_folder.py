"""Tells when nothing can be kept between starts: the start works, but learns nothing and may be slower."""

import os
from collections.abc import Iterator

from envs.registry import env
from startup.preflight.disk import nearest_existing
from startup.preflight.report import Finding, warning


def check_cache_folder() -> Iterator[Finding]:
    """Start-up times and what imports work out are kept below VLLM_CACHE_ROOT."""
    folder = env.VLLM_CACHE_ROOT.get() / "vllm_cli"
    place = nearest_existing(folder)
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        yield warning(
            "cache",
            f"nothing is kept between starts: {folder} cannot be written to; "
            f"mount a volume there, or set {env.VLLM_CACHE_ROOT.name}",
        )
