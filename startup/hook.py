"""Hooks: changes that the launcher makes in modules of vLLM and of other libraries.

A hook lists its needs: the names (`Name`) and the source text (`Text`) in these modules on which it relies.
Texts are searched in the modules' files. Names are checked once the modules are imported. The code that
places a hook takes names from the hook's needs, so the checks cover exactly the names in use.
`startup.vllm.launch.hooks` lists all hooks.
"""

import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from envs.registry import env

logger = logging.getLogger(__name__)

Release: TypeAlias = tuple[int, int]
"""Major and minor number of a version."""

Process: TypeAlias = Literal["api", "forkserver", "template"]
"""A process that imports vLLM: its API server, the forkserver of a start, or a template of a standby."""

TimedStart: TypeAlias = Literal[
    "CPU, eager, later",
    "CPU, eager, first",
    "CPU, eager, beside a standby",
    "CPU, compiled, later",
    "CPU, compiled, beside a standby",
    "embedded, eager, later",
    "stand-in, compiled, later",
    "stand-in, compiled, first",
    "stand-in, eager, later",
    "stand-in, eager, first",
]
"""Starts in which `make figures` can measure what a hook saves: build, mode, and what came before.

The builds are vLLM's for CPU, the embedded engine, and vLLM's CUDA build on the stand-in for a GPU.
"""

StartPart: TypeAlias = Literal["import file", "lean imports", "offline hub", "real-time probes"]
"""Parts of a start, besides hooks, that VCLI_LEAVE_OUT can switch off (`START_PARTS`)."""


class PartOfStart(NamedTuple):
    """Describes a part of a start, and why it is there."""

    does: str
    without: str
    gain_in: tuple[TimedStart, ...] = ()
    promise: str = ""


START_PARTS: Final[dict[StartPart, PartOfStart]] = {
    "import file": PartOfStart(
        "imports modules from one file",
        "each module is read from a file of its own",
        gain_in=("CPU, eager, later", "embedded, eager, later", "stand-in, compiled, later"),
    ),
    "lean imports": PartOfStart(
        "uses stand-ins for modules, and delays imports",
        "all modules are imported, and at once",
        gain_in=("CPU, eager, later", "embedded, eager, later", "stand-in, compiled, later"),
    ),
    "offline hub": PartOfStart(
        "sets HF_HUB_OFFLINE if all files are on disk",
        "vLLM sends the hub a dozen requests",
        promise="no requests to the hub if all files are on disk",
    ),
    "real-time probes": PartOfStart(
        "gives the responder real-time priority where permitted",
        "the responder waits for a processor like any process",
        promise="probes are answered at once on busy processors",
    ),
}
"""The parts, with the same facts as a hook has."""


@dataclass(frozen=True)
class Name:
    """A module, or a name in it, that a hook uses or replaces."""

    module: str
    path: str = ""
    """The name in the module, such as `Server.startup` for a method. Empty if the hook needs no name."""
    parameters: tuple[str, ...] | None = None
    """The arguments that the hook passes. Other parameters must have defaults. None: any signature fits."""

    def __str__(self) -> str:
        called = "" if self.parameters is None else f"({', '.join(self.parameters)})"
        return f"{self.module}.{self.path}{called}" if self.path else self.module

    def get(self, module: ModuleType | None = None) -> Any:
        """Returns the value that the name has now. `module` is by default the loaded module."""
        value: Any = self.loaded if module is None else module
        for name in self.path.split("."):
            value = getattr(value, name)
        return value

    def replace(self, module: ModuleType, value: Any) -> None:
        owner, _, name = self.path.rpartition(".")
        setattr(Name(self.module, owner).get(module) if owner else module, name, value)

    @property
    def loaded(self) -> ModuleType | None:
        return sys.modules.get(place_of(self.module))

    def problems(self, module: ModuleType) -> Iterator[str]:
        """Yields a text if the loaded module lacks the name, or if its signature does not fit the hook."""
        if not self.path:
            return
        value = self._find(module)
        if value is _MISSING:
            yield f"{self.module} has no {self.path}"
        elif self.parameters is not None and inspect.isroutine(inspect.unwrap(value)):
            yield from self._differences(value)

    def _find(self, module: ModuleType) -> Any:
        """Returns `_MISSING` if there is no value, or None if only instances have the attribute."""
        value: Any = module
        for part in self.path.split("."):
            owner, value = value, getattr(value, part, _MISSING)
            if value is _MISSING:
                return None if inspect.isclass(owner) and _is_set(owner, part) else _MISSING
        return value

    def _differences(self, function: Any) -> Iterator[str]:
        """Yields parameters that the function lacks, and required parameters that the hook does not pass."""
        try:
            given = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # the function is compiled code
            return
        if "." in self.path and given and given[0].name in ("self", "cls"):
            given = given[1:]
        taken = [each for each in given if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        names, passed = [each.name for each in taken], self.parameters or ()
        takes_any = any(each.kind is each.VAR_KEYWORD for each in given)
        if unknown := [parameter for parameter in passed if not takes_any and parameter not in names]:
            yield f"{self.module}.{self.path} takes no {', '.join(unknown)}"
        required = [each.name for each in taken if each.default is each.empty]
        if needed := [name for name in required if name not in passed]:
            yield f"{self.module}.{self.path} needs {', '.join(needed)}"


@dataclass(frozen=True)
class Text:
    """A pattern in a module's source. If the source contains it, the module works as the hook expects."""

    module: str
    pattern: str
    """A regular expression. `.` matches line breaks too."""
    meaning: str

    def __str__(self) -> str:
        return f"{self.module}: {self.meaning}"

    def is_found(self) -> bool:
        """Whether the source of the module contains the pattern. Imports no module."""
        path = _source(self.module)
        text = path.read_text(encoding="utf-8", errors="replace") if path else ""
        return re.search(self.pattern, text, re.DOTALL | re.MULTILINE) is not None


Need: TypeAlias = Name | Text

_MISSING: Final = object()


class UnfitHookError(Exception):
    """An essential hook does not fit, so vLLM must start without preloading."""


@dataclass(frozen=True)
class Hook:
    """One change in modules of vLLM or another library, or one use of their internals."""

    name: str
    does: str
    without: str
    """What a start loses without the hook."""
    needs: tuple[Need, ...]
    gain_in: tuple[TimedStart, ...] = ()
    """Starts that are faster with the hook. docs/figures has what `make figures` has measured of them."""
    promise: str = ""
    """The promise of the documentation that this hook keeps. An optional hook has a gain or a promise."""
    is_essential: bool = False
    """Whether vLLM starts without preloading if this hook does not fit."""
    since: Release | None = None
    """The first vLLM release that needs the hook. None: the oldest supported release."""
    until: Release | None = None
    """The last vLLM release that needs the hook. None: the newest release."""
    places: Set[Process] = field(default=frozenset(), compare=False)
    """The processes that place the hook's `changes`. Their forks inherit them."""
    changes: list[Callable[[], None]] = field(default_factory=list, compare=False, repr=False)
    """Each call makes one change. Declared by `startup.imports.finder.wraps` and `alters`."""

    def __post_init__(self) -> None:
        if not (self.gain_in or self.promise or self.is_essential):
            raise ValueError(f"the hook {self.name!r} names no start that it makes faster, and keeps no promise")

    def part(
        self,
        *needs: Need,
        since: Release | None = None,
        until: Release | None = None,
        places: Set[Process] | None = None,
    ) -> "Hook":
        """Returns this hook with other needs. If these are unmet, only the returned hook is left out."""
        places = self.places if places is None else places
        return replace(self, needs=needs, since=since, until=until, places=places, changes=[])

    def is_for(self, release: Release) -> bool:
        if self.since is not None and release < self.since:
            return False
        return self.until is None or release <= self.until

    @property
    def applies(self) -> bool:
        """Whether to place the hook: VCLI_LEAVE_OUT does not name it, this release needs it, and it fits.

        A hook fits until an unmet need is found. Then a warning is logged, and the hook is left out from now
        on.

        Raises:
            UnfitHookError: the hook does not fit and is essential.
        """
        if self in _unfit or self.name in env.VCLI_LEAVE_OUT.get():
            return False
        if _State.release is not None and not self.is_for(_State.release):
            return False
        if (problem := next(self.problems(), None)) is None:
            return True
        if self.is_essential:
            raise UnfitHookError(f"the hook {self.name!r} does not fit this version ({problem})")
        is_known = self.name in unfit()
        _unfit[self] = None
        if not (is_known or _State.is_silent):
            log_unfit([self.name])
        return False

    def problems(self) -> Iterator[str]:
        """Yields a text for each unmet need. A need that was met in an earlier call is not checked again."""
        for need in self.needs:
            if need not in _met and _is_package(need.module):
                found = list(_problems(need))
                yield from found
                if not found and (isinstance(need, Text) or place_of(need.module) in sys.modules):
                    _met.add(need)

    @property
    def absent_packages(self) -> list[str]:
        """Packages that the hook changes or uses, but that are not installed."""
        return sorted({_root(need.module) for need in self.needs if not _is_package(need.module)})


def hooks_of(*modules: ModuleType) -> Iterator[Hook]:
    """Yields the hooks that these modules declare. Each hook is followed by its parts."""
    return (hook for module in modules for hook in vars(module).values() if isinstance(hook, Hook))


def uses(part: StartPart) -> bool:
    """Whether this part of the start is used: VCLI_LEAVE_OUT does not name it."""
    return part not in env.VCLI_LEAVE_OUT.get()


def names_without(part: StartPart) -> str:
    """Returns a value for VCLI_LEAVE_OUT that adds this part to the parts that it names now."""
    return ",".join(sorted({*env.VCLI_LEAVE_OUT.get(), part}))


_unfit: Final[dict["Hook", None]] = {}
"""The hooks that were found not to fit, in the order of discovery."""
_met: Final[set[Need]] = set()


class _State:
    release: Release | None = None
    is_silent = False


def place_only_for(release: Release) -> None:
    """Makes this process and its forks place only hooks for this release of vLLM."""
    _State.release = release


def leave_out_misfits(hooks: Iterable[Hook]) -> None:
    """Leaves out hooks that do not fit the modules' files or the modules loaded so far. Logs their names."""
    with_problems = [hook for hook in hooks if next(hook.problems(), None) is not None]
    _unfit.update(dict.fromkeys(with_problems))
    if _unfit:
        log_unfit(unfit())


def unfit() -> tuple[str, ...]:
    """The names of hooks that do not fit, or that have a part that does not fit."""
    return tuple(sorted({hook.name for hook in _unfit}))


def find_unfit_silently() -> None:
    """Makes this process and its forks log no warnings about hooks. The launcher logs them."""
    _State.is_silent = True


def log_unfit(names: Iterable[str]) -> None:
    """Logs in one line which hooks, and so which speed-ups, do not fit this version of vLLM."""
    logger.warning("%s", UNFIT.format(", ".join(map(repr, names))))


UNFIT: Final = (
    "vLLM starts without some speed-ups, since these hooks do not fit: {}; `vllm-cli doctor --hooks` shows all"
)


def _problems(need: Need) -> Iterator[str]:
    if _source(need.module) is None:
        yield f"module {need.module} is missing"
    elif isinstance(need, Text):
        if not need.is_found():
            yield f"{need.module}: {need.meaning} is not found"
    elif (module := sys.modules.get(place_of(need.module))) is not None and not _is_being_imported(module):
        yield from need.problems(module)


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False)) and module.__name__ not in _executed


_executed: Final[set[str]] = set()
"""Modules whose code has run to its end although their import has not finished."""


def note_executed(module: str) -> None:
    """Records that a module's code has run to its end. From now on, the module's names can be checked."""
    _executed.add(module)


def _root(module: str) -> str:
    return module.partition(".")[0]


def _is_package(module: str) -> bool:
    return _package(_root(module)) is not None


@cache
def _package(root: str) -> Path | None:
    """Returns the folder of a package, or the file of a module that is no package. Imports nothing."""
    try:
        spec = find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


_SHIM_BYTES: Final = 2048
_SHIM: Final = re.compile(r"""^\w+ = \w+\.import_module\(["']([\w.]+)["']\)$""", re.MULTILINE)


@cache
def place_of(module: str) -> str:
    """Returns the name under which to import a module. It differs from `module` if vLLM has moved the module.

    vLLM may leave a shim at the old name: a small module that only imports the module from its new place.
    """
    file = _file(module)
    if file is None or file.stat().st_size > _SHIM_BYTES:
        return module
    target = _SHIM.search(file.read_text(encoding="utf-8", errors="replace"))
    return target[1] if target else module


def _source(module: str) -> Path | None:
    """Returns the source file of a module, or of the module that a shim imports (`place_of`)."""
    return _file(place_of(module))


def _file(module: str) -> Path | None:
    package = _package(_root(module))
    if package is None or not package.is_dir():
        return package
    path = package.joinpath(*module.split(".")[1:])
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _is_set(owner: type, name: str) -> bool:
    """Whether instances of the class have the attribute, as a dataclass field or as `self.NAME`."""
    if name in getattr(owner, "__dataclass_fields__", ()):
        return True
    source = _source(owner.__module__)
    return source is not None and re.search(rf"\bself\.{name}\b", source.read_text(encoding="utf-8")) is not None
