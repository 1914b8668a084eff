"""The folders with what is kept between starts: the user's cache folder and, below it, a baked one.

A file is looked up in the cache folder first. Everything is written to the cache folder only.
"""

from pathlib import Path
from typing import Final

from envs.registry import env
from startup.caches.baked import CACHE, find_baked

OWN: Final = "vllm_cli"
"""This program's folder inside of vLLM's cache folder."""


def cache_folder() -> Path:
    """This program's cache folder; it may not exist yet."""
    return env.VLLM_CACHE_ROOT.get() / OWN


def layers(name: str) -> tuple[Path, ...]:
    """The places of a file or folder of the cache: the user's, then the baked one, if there is one."""
    own = cache_folder() / name
    baked = find_baked().folder
    return (own,) if baked is None else (own, baked / CACHE / OWN / name)
