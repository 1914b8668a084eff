"""Keeps preload profiles: the modules and variables that vLLM's processes used in earlier starts.

The forkserver imports these modules in later starts of the same kind (`StartKind`), after those of a shipped
list, which each start imports (`platform_modules`).
"""

import json
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from base.json_depth import read_json
from envs.redaction import hide_in_arguments
from startup.hook import Hook, Name, Release, Text
from startup.kernels.kernel_lists import KernelUse
from startup.reports.timeline.history import installed_versions
from startup.storage.caches import CachedValue, digest, of_type, read_all
from startup.vllm.journal import API_SERVER, StartRecordings
from startup.vllm.patches.compiler import COMPILER, CompilerTime
from startup.vllm.vllm_imports import API_MODULES
from startup.vllm.vllm_main import MAIN
from startup.vllm_arguments.flags import flags_that_change
from startup.vllm_arguments.installed import InstalledVllm

if TYPE_CHECKING:
    from startup.vllm_arguments.vllm_line import VllmLine

_FORMAT: Final = 10
_FOLDER: Final = "preload"
PLAIN: Final = "plain"
"""The cache's folder for instances of `PlainState`."""
ENABLE: Final = "vllm-cli caches prune --plain-starts"
_FIRST_S: Final = 3600.0
_NEXT_S: Final = 86400.0
_REMEMBERED_S: Final = 7 * 86400.0
"""Seconds after which a failure of preloading is forgotten."""
_DISTRIBUTION: Final = "vllm-cli-server"
_API_PROCESSES: Final = ("MainProcess", API_SERVER)
_ENGINE_MODULES: Final = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")
PRELOADING: Final = Hook(
    "preloading",
    does="imports the API server beside the forkserver's imports; runs `vllm serve` in the launcher",
    without="vLLM runs as a new program",
    gain="0.16 (0.15–0.18) of `vllm serve`, with all hooks",
    needs=(MAIN, *map(Name, (*API_MODULES[1:], *_ENGINE_MODULES))),
    is_essential=True,
)

PROFILE: Final = Hook(
    "preload profile",
    does="imports, in the forkserver, a shipped list and what engines and workers imported in earlier starts",
    without="engines and workers import these modules themselves",
    promise="model and plugins are imported once",
    needs=(Text("vllm.v1.utils", r'f"ApiServer_', "ApiServer_"),),
)

_SHIPPED: Final = Path(__file__).with_name("shipped_profiles.json")
"""Which modules engines import in starts without special flags, by platform and release of vLLM.

`eager` has modules of every start, `compiled` further ones of starts that compile. A module that a release
lacks is skipped. `tools/preload_profiles.py` makes the lists from starts. Models are not in them.
"""
_FORMER_GPU_MODULES: Final = ("vllm.v1.worker.gpu_model_runner",)
"""Model Runner V1, the default until vLLM 0.32. vLLM uses V1 if V2 lacks a feature, and will remove V1."""


@dataclass(frozen=True)
class StartKind:
    """The properties that decide which modules a start imports, and roughly how long the start takes."""

    version: str
    architecture: str
    flags: tuple[str, ...]
    python: str = platform.python_version()
    machine: str = platform.machine()
    prefix: str = sys.prefix

    @classmethod
    def of(cls, vllm: InstalledVllm, flags: Iterable[str], model: Path | None) -> "StartKind":
        """The kind of a start with the flags `VllmLine.flags_of_modules` and this model's folder."""
        return cls(vllm.version, _architecture(model), tuple(hide_in_arguments(flags)))

    @property
    def key(self) -> str:
        """The name of the file that keeps this kind's profile."""
        return digest((_FORMAT, self))


@dataclass(frozen=True)
class PreloadProfile:
    """The modules that the processes of one kind of start had loaded when the server was ready."""

    kind: StartKind
    engine_modules: tuple[str, ...] = ()
    """Modules of engine and worker processes, in order of import."""
    api_modules: tuple[str, ...] = ()
    """Modules of the API server that vLLM's command line does not import."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that vLLM sets for its children and that libraries read when they are loaded."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Modules that could not be preloaded, with the error. A day after `failed_s`, they are forgotten."""
    failed_s: float = 0.0
    """When the first module of `failed` failed, in seconds since 1970."""
    num_starts: int = 0
    model: str | None = None
    """The folder of the model in the last start. None for a model that was not on disk."""
    is_complete: bool = True
    """Whether the lists have all modules. A warm start records only modules new to its template process."""

    def updated_with(
        self, recordings: StartRecordings, *, is_warm: bool = False, has_compiled: bool = False
    ) -> "PreloadProfile":
        """Returns the profile with the recordings of one more start. New modules follow the known modules.

        If the start `has_compiled` its model, its engines have also imported what later starts, which load
        it, do not need. So their modules are not added.
        """
        engine = list(self.engine_modules)
        api = list(self.api_modules)
        for process, names in recordings.modules.items():
            if process.startswith(_API_PROCESSES):
                api.extend(names)
            elif not has_compiled:
                engine.extend(names)
        failed = {**self.failed, **recordings.failed}
        variables = {n: v for n, v in recordings.environment.items() if v}
        return replace(
            self,
            engine_modules=tuple(name for name in dict.fromkeys(engine) if name not in failed),
            api_modules=tuple(dict.fromkeys(api)),
            environment={**self.environment, **variables},
            failed=failed,
            failed_s=self.failed_s if self.failed or not failed else time.time(),
            num_starts=self.num_starts + 1,
            is_complete=not is_warm or (self.is_complete and self.num_starts > 0),
        )

    def save(self) -> None:
        """Keeps the profile for later starts of its kind."""
        _cached(self.kind).write(asdict(self))


def load_profile(kind: StartKind) -> PreloadProfile:
    """The profile of this kind of start. If no profile was saved, returns an empty profile."""
    profile = _cached(kind).read(of_type(PreloadProfile)) or PreloadProfile(kind)
    return profile if abs(time.time() - profile.failed_s) < _NEXT_S else replace(profile, failed={})


def has_own_profile(kind: StartKind) -> bool:
    """Whether a start of this kind has succeeded with this cache folder."""
    return _cached(kind).path.exists()


def load_all_profiles() -> list[PreloadProfile]:
    """The profiles of all kinds of start. The latest profile comes first, and baked profiles come last."""
    profiles: dict[StartKind, PreloadProfile] = {}
    for profile in read_all(_FOLDER, of_type(PreloadProfile)):
        profiles.setdefault(profile.kind, profile)
    return list(profiles.values())


@dataclass(frozen=True)
class PlainState:
    """Records that starts of one kind on one host do not preload, because code of this package has failed."""

    kind: StartKind
    host: str
    reason: str
    end_s: float
    """The end of this state, in seconds since 1970."""

    @property
    def end(self) -> str:
        """Says when starts preload again, and how the user ends the state earlier."""
        end = datetime.fromtimestamp(self.end_s, UTC)
        return f"it preloads again from {end:%Y-%m-%d %H:%M} UTC on, or after `{ENABLE}`"

    @property
    def holds(self) -> bool:
        """Whether the state still holds. A state that was written while the clock was ahead does not hold."""
        return 0 < self.end_s - time.time() <= _NEXT_S

    def __str__(self) -> str:
        return f"{self.reason}; {self.end}"


def plain_state(kind: StartKind) -> PlainState | None:
    """The state that keeps this kind of start from preloading. None if the start preloads.

    The state applies only to this Python, vLLM and package.
    """
    state = _cached_plain(kind).read(of_type(PlainState), is_own=True)
    return state if state is not None and state.holds else None


def plain_states() -> list[PlainState]:
    """The states that hold, of all hosts that share the cache folder."""
    return [state for state in read_all(PLAIN, of_type(PlainState)) if state.holds]


def disable_preloading(kind: StartKind, reason: str) -> PlainState:
    """Turns preloading off for an hour after our code has failed, and for a day after a further failure.

    The profile may have caused the failure, so the next start that preloads begins with an empty profile.
    """
    cached = _cached_plain(kind)
    lasts_s = _FIRST_S if cached.read(of_type(PlainState), is_own=True) is None else _NEXT_S
    state = PlainState(kind, platform.node(), reason, time.time() + lasts_s)
    cached.write(asdict(state))
    PreloadProfile(kind).save()
    return state


def forget_failure(kind: StartKind) -> None:
    """Makes the next start preload. Called if preloading has worked, or if a start without it has failed."""
    _cached_plain(kind).remove()


def _cached(kind: StartKind) -> CachedValue:
    return CachedValue(_FOLDER, kind.key)


def _cached_plain(kind: StartKind) -> CachedValue:
    own = installed_versions((_DISTRIBUTION,)).get(_DISTRIBUTION)
    return CachedValue(PLAIN, (sys.version, kind.key, platform.node()), own, _REMEMBERED_S)


def _architecture(model: Path | None) -> str:
    """The model's first architecture in config.json. Empty if the file cannot be read."""
    if model is None:
        return ""
    with suppress(OSError, ValueError, TypeError, LookupError):
        return str(read_json((model / "config.json").read_bytes())["architectures"][0])
    return ""


@dataclass(frozen=True)
class PreloadPlan:
    """The imports that a forkserver does, passed in a file because it accepts only names of modules."""

    folder: str
    """The folder to which the processes of this start write their journals."""
    modules: tuple[str, ...]
    model: str | None
    """The folder of a model whose class is imported, too. None if the profile has the class's modules."""
    compiler: CompilerTime
    release: Release
    kernels: KernelUse | None = None
    """The start, for the choice of the kernels that are compiled beside it. None: none are."""

    def write(self) -> Path:
        """Writes the plan into its folder. Returns the file."""
        path = Path(self.folder) / "preload.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "PreloadPlan":
        content = json.loads(path.read_bytes())
        kernels = of_type(KernelUse)(content["kernels"]) if content["kernels"] is not None else None
        changed = {"modules": tuple(content["modules"]), "release": tuple(content["release"]), "kernels": kernels}
        return cls(**{**content, **changed})


def plan_preload(
    folder: Path, vllm: InstalledVllm, line: "VllmLine", profile: PreloadProfile, model: Path | None
) -> PreloadPlan:
    """Plans the platform's modules, then the profile's. Adds the model's class to an incomplete profile."""
    is_eager = line.is_eager
    servers = API_MODULES[1:2] if line.has(*flags_that_change("API servers")) else ()
    known = profile.engine_modules if PROFILE.applies else ()
    is_known = bool(known) and profile.is_complete
    of_platform = platform_modules(vllm, is_eager=is_eager)
    return PreloadPlan(
        folder=str(folder),
        modules=tuple(dict.fromkeys((*of_platform, *servers, *known))),
        model=None if is_known or model is None else str(model),
        compiler=compiler_time(known, is_eager=is_eager),
        release=vllm.release,
    )


def platform_modules(vllm: InstalledVllm, *, is_eager: bool) -> tuple[str, ...]:
    """The modules that engine and worker of such a start import on this platform, whatever the model."""
    if vllm.is_for_cpu:
        return (*_ENGINE_MODULES, "vllm.v1.worker.cpu_worker", *_shipped_modules("cpu", vllm.release, is_eager))
    former = _FORMER_GPU_MODULES if vllm.release <= (0, 32) else ()
    return (*_ENGINE_MODULES, *former, *_shipped_modules("gpu", vllm.release, is_eager))


def _shipped_modules(platform: str, release: Release, is_eager: bool) -> list[str]:
    """The shipped list of the newest release up to this one, else of the oldest one."""
    by_release = {
        (int(major), int(minor)): modules
        for name, modules in json.loads(_SHIPPED.read_bytes())[platform].items()
        for major, minor in [name.split(".")]
    }
    found = max((each for each in by_release if each <= release), default=min(by_release))
    modules = by_release[found]
    return [*modules["eager"]] if is_eager else [*modules["eager"], *modules["compiled"]]


def compiler_time(known: Sequence[str], *, is_eager: bool) -> CompilerTime:
    """When to import the compiler: later if the start is eager and the `known` modules lack the compiler."""
    return "now" if not is_eager or COMPILER in known else "deferred"
