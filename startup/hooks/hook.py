"""What a hook is: a change that the launcher makes in other programs' modules, and what it relies on there.

A module that places a hook declares it and takes the names from the declaration, so that `vllm-cli preload
check` checks what the hook really uses. All hooks are listed in `startup.vllm.launch.hooks`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias

from envs.registry import env

Release: TypeAlias = tuple[int, int]
"""Major and minor number of a version."""

Part: TypeAlias = Literal["import file", "lean imports", "offline hub", "real-time probes"]
"""What else VCLI_LEAVE_OUT can name: importing from one file; all stand-ins and delays of imports; keeping
vLLM from the hub if all is on disk; the priority of the process that answers probes."""


@dataclass(frozen=True)
class Name:
    """A module, or a name in it, that a hook uses or replaces."""

    module: str
    path: str = ""
    """The name, with the names of its classes: `Server.startup`. Empty for the module itself."""
    parameters: tuple[str, ...] | None = None
    """What the hook passes; further parameters have defaults. None if the signature does not matter."""

    def __str__(self) -> str:
        called = "" if self.parameters is None else f"({', '.join(self.parameters)})"
        return f"{self.module}.{self.path}{called}" if self.path else self.module

    def get(self, module: ModuleType) -> Any:
        """The present value in the loaded module."""
        value: Any = module
        for name in self.path.split("."):
            value = getattr(value, name)
        return value

    def replace(self, module: ModuleType, value: Any) -> None:
        """Sets the value in the loaded module."""
        owner, _, name = self.path.rpartition(".")
        setattr(Name(self.module, owner).get(module) if owner else module, name, value)


@dataclass(frozen=True)
class Text:
    """A pattern in a module's source, which shows that the module works as the hook expects."""

    modules: tuple[str, ...]
    """The places of the source in the supported versions; one of them has it."""
    pattern: str
    """A regular expression; `.` matches line breaks too."""
    meaning: str
    """What the pattern shows, in words."""

    def __str__(self) -> str:
        return f"{self.modules[0]}: {self.meaning}"


@dataclass(frozen=True)
class Reads:
    """A function reads only these attributes of an argument, for which the hook passes a small object."""

    function: Name
    argument: str
    attributes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.function.module}.{self.function.path} reads of {self.argument}: {', '.join(self.attributes)}"


Need: TypeAlias = Name | Text | Reads


@dataclass(frozen=True)
class Hook:
    """One change in other programs' modules, or one use of their internals."""

    name: str
    does: str
    without: str
    """What is lost without the hook."""
    needs: tuple[Need, ...]
    is_essential: bool = False
    """Whether vLLM starts without preloading if this hook does not fit."""
    since: Release | None = None
    """The first vLLM release that needs the hook; None if all supported ones do."""
    until: Release | None = None
    """The last vLLM release that needs the hook; None if the newest does."""

    def is_for(self, release: Release) -> bool:
        """Whether this release of vLLM needs the hook."""
        return (self.since is None or release >= self.since) and (self.until is None or release <= self.until)

    @property
    def applies(self) -> bool:
        """Whether the hook may be placed: it fits, and VCLI_LEAVE_OUT does not name it."""
        return self.name not in _left_out and self.name not in env.VCLI_LEAVE_OUT.get()


def uses(part: Part) -> bool:
    """Whether VCLI_LEAVE_OUT does not name this part of the start."""
    return part not in env.VCLI_LEAVE_OUT.get()


def names_without(part: Part) -> str:
    """The value of VCLI_LEAVE_OUT for a start that does not use the part, either."""
    return ",".join(sorted({*env.VCLI_LEAVE_OUT.get(), part}))


_left_out: Final[set[str]] = set()


def leave_out(names: Iterable[str]) -> None:
    """From now on, the hooks with these names do not apply in this process and its forks."""
    _left_out.update(names)


def left_out() -> tuple[str, ...]:
    """The names of these hooks, in alphabetical order."""
    return tuple(sorted(_left_out))
