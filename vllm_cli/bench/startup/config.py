"""Typed configuration of `bench startup`; standard library only, built once by the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.errors import ConfigError
from vllm_cli.bench.config import CompletionConfig, Endpoint, TargetSpec, check_counts

StartState = Literal[
    "warm", "cold-pages", "cold-compile", "cold", "standby", "tenth-root", "fresh-root", "fresh-root-cold"
]
"""What is there before a start:

warm: caches of earlier starts.
cold-pages: the same, but weights (with --evict-libraries also libraries) are evicted from the page cache.
cold-compile: warm, but no compile cache.
cold: both.
standby: warm, and a standby that has the imports.
tenth-root: a root file system in which nine or more starts were before.
fresh-root: a new root file system.
fresh-root-cold: the same, with the Python environment and the weights evicted.
"""

PROMPT = "The capital of France is"
MAX_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class StartupBenchConfig:
    """The commands to start, the states of the caches, and the number of rounds."""

    targets: tuple[TargetSpec, ...]
    """Commands; the first is side A, the others are compared with it."""
    floor_model: Path | None = None
    """The model folder of the bare script, an additional side; None leaves it out."""
    states: tuple[StartState, ...] = ("warm",)
    num_rounds: int = 5
    evict_paths: tuple[Path, ...] = ()
    """Files and folders whose pages are evicted for a cold page cache."""
    evict_libraries: bool = False
    """Whether the shared libraries of the commands' Python environments are evicted too."""
    standby_model: str | None = None
    """The model that the standby keeps too (its --model)."""
    compile_cache: Path | None = None
    """The folder that is renamed for a cold compile cache."""
    endpoint: Endpoint = "completions"
    api_key: str | None = None
    ready_timeout_s: float = 600.0
    pause_s: float = 1.0
    """Time between the end of one server and the start of the next."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("--cmd", None, "given")
        check_counts({"--rounds": self.num_rounds, "--state": len(self.states)})
        if self.needs_cold_pages and not self.evict_paths and not self.evict_libraries:
            raise ConfigError("--evict", None, "given for a cold page cache: the model's folder")
        if self.needs_cold_compile and self.compile_cache is None:
            raise ConfigError("--compile-cache", None, "given for a cold compile cache: its folder")
        if self.has_standby and self.needs_cold_pages and self.evict_libraries:
            raise ConfigError("--evict-libraries", True, "left out with --state standby: a standby maps the libraries")

    @property
    def has_roots(self) -> bool:
        return any("root" in state for state in self.states)

    @property
    def has_standby(self) -> bool:
        return "standby" in self.states

    @property
    def needs_cold_pages(self) -> bool:
        return any(state in ("cold-pages", "cold", "fresh-root-cold") for state in self.states)

    @property
    def needs_cold_compile(self) -> bool:
        return any(state in ("cold-compile", "cold") for state in self.states)

    @property
    def request_config(self) -> CompletionConfig:
        """How a started server is asked for its first completion."""
        return CompletionConfig(
            targets=self.targets,
            endpoint=self.endpoint,
            ignore_eos=False,
            stream=True,
            api_key=self.api_key,
            ready_timeout_s=self.ready_timeout_s,
            request_timeout_s=self.ready_timeout_s,
        )
