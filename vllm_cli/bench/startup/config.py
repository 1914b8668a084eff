"""Typed configuration of `bench startup`; standard library only, built once by the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from server.errors import ConfigError
from vllm_cli.bench.config import CompletionConfig

StartState = Literal[
    "warm",
    "cold-pages",
    "cold-compile",
    "cold",
    "cold-download",
    "standby",
    "tenth-root",
    "fresh-root",
    "fresh-root-cold",
]
"""What is there before a start:

warm: caches of earlier starts.
cold-pages: the same, but weights (with --evict-libraries also libraries) are evicted from the page cache.
cold-compile: warm, but no compile cache.
cold: both.
cold-download: warm, but the hub's cache is empty; the model comes from a stand-in for the hub.
standby: warm, and a standby that has the imports.
tenth-root: a root file system in which nine or more starts were before.
fresh-root: a new root file system.
fresh-root-cold: the same, with the Python environment and the weights evicted.
"""

COLD_PAGES: Final = frozenset(("cold-pages", "cold", "fresh-root-cold"))
COLD_COMPILE: Final = frozenset(("cold-compile", "cold"))

PROMPT = "The capital of France is"
MAX_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class StartupBenchConfig(CompletionConfig):
    """The states of the caches before the starts of commands."""

    floor_model: Path | None = None
    """The model folder of the bare script, an additional side; None leaves it out."""
    states: tuple[StartState, ...] = ("warm",)
    num_rounds: int = 5
    ignore_eos: bool = False
    evict_paths: tuple[Path, ...] = ()
    """Files and folders whose pages are evicted for a cold page cache."""
    evict_libraries: bool = False
    """Whether the shared libraries of the commands' Python environments are evicted too."""
    standby_model: str | None = None
    """The model that the standby keeps too (its --model)."""
    compile_cache: Path | None = None
    """The folder that is renamed for a cold compile cache."""
    hub: str | None = None
    """The address of the stand-in for the hub, for `cold-download`."""
    link: str | None = None
    """The rate that the stand-in's link gets; None leaves it as it is."""
    pause_s: float = 1.0
    """Time between the end of one server and the start of the next."""

    def __post_init__(self) -> None:
        if self.needs_cold_compile and self.compile_cache is None:
            raise ConfigError("--compile-cache", None, "given for a cold compile cache: its folder")
        if self.needs_hub and self.hub is None:
            needed = "given for --state cold-download: the address that `python -m tools.hub FOLDER` prints"
            raise ConfigError("--hub", None, needed)
        if self.link is not None and self.hub is None:
            raise ConfigError("--link", self.link, "given with --hub")
        if self.has_standby and self.needs_cold_pages and self.evict_libraries:
            raise ConfigError("--evict-libraries", True, "left out with --state standby: a standby maps the libraries")

    @property
    def has_roots(self) -> bool:
        return any("root" in state for state in self.states)

    @property
    def has_standby(self) -> bool:
        return "standby" in self.states

    @property
    def needs_hub(self) -> bool:
        return "cold-download" in self.states

    @property
    def needs_cold_pages(self) -> bool:
        return not COLD_PAGES.isdisjoint(self.states)

    @property
    def needs_cold_compile(self) -> bool:
        return not COLD_COMPILE.isdisjoint(self.states)
