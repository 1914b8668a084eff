"""Reads the arguments of `serve` and the file of `--config` once, by the rules of the chosen engine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import TYPE_CHECKING, Final

from envs.registry import ENGINES, validate_all
from envs.suggestion import changed_word, did_you_mean
from envs.variable import EnvError
from startup.arguments.embedded_line import parse_line, read_line
from startup.arguments.errors import InputError
from startup.arguments.screening import unsupported_faults
from startup.arguments.supported import CONFIG, ENGINE, GROUPS
from startup.arguments.table import split_flags, with_flags
from startup.settings.config_file import ConfigFile
from startup.settings.serve_arguments import (
    OMNI,
    CommandLine,
    LauncherLine,
    ParsedOption,
    help_topic,
    is_stray,
    repeated_arguments,
)

if TYPE_CHECKING:
    from startup.vllm_arguments.vllm_line import VllmLine

EMPTY_REMEDY: Final = "set the variable that stands in its place, or leave the argument out for the default"
_FLAGS_OF_ROUTER: Final = ("--idle-stop", "--idle-sleep", "--restart")
_OF_ONE_MODEL: Final = {"--max-wait", "--max-waiting"}
"""Flags for several models that also apply to a single model behind a router."""


@dataclass(frozen=True)
class ReadArguments:
    """The arguments of `serve` with the file of `--config`, each read once, before any value is checked.

    The engine that they choose decides by whose rules they are read: `own` or `vllm`.
    """

    launcher: LauncherLine
    parts: tuple[ParsedOption, ...]
    """All arguments, divided by the flags of this program."""
    topic: str | None = None
    """The topic of the help that is asked for instead of a start (`help_topic`)."""
    own: CommandLine | None = None
    """The flags by the rules of the embedded engine."""
    vllm: "VllmLine | None" = None

    @property
    def of_router(self) -> Sequence[ParsedOption]:
        """A router's arguments: MODEL first, then the settings of `--config`, unless vLLM reads them."""
        if self.own is None:
            return self.parts
        options = (option for option in self.own.options if option.name != CONFIG.name)
        return (*(ParsedOption((model,)) for model in self.own.others), *options)

    @property
    def wants_cold_start(self) -> bool:
        """Whether a standby must not fork this process: a router, `standby: off`, or a model's own code.

        Such code may use any module, but lean imports (`startup.imports.lean`) leave modules out.
        """
        if self.launcher.has_several_models:
            return True
        if self.own is None:
            return False
        is_router = self.own.has(*_FLAGS_OF_ROUTER) and not self.own.has("--preflight-only")
        has_own_code = self.own.has("--trust-remote-code")
        return is_router or has_own_code or self.own.value("--standby") == "off"


def read_arguments(
    launcher: LauncherLine, *, read_file: Callable[[str], ConfigFile] = ConfigFile.read
) -> ReadArguments:
    """Chooses the engine, and reads all arguments and the file by its rules.

    Args:
        launcher: the arguments.
        read_file: reads the file of `--config`.

    Raises:
        ClickException: `serve` rejects the arguments.
    """
    arguments = launcher.arguments
    read = ReadArguments(launcher, tuple(with_flags(launcher.pieces)))
    _reject_repetition(read.parts)
    if arguments and not arguments[0].strip():
        raise InputError(f"MODEL is empty: {EMPTY_REMEDY}.")
    if not launcher.has_several_models:
        _reject_flags_of_several(launcher, read.parts)
        if choose_engine(launcher) == "vllm":
            from startup.vllm_arguments.vllm_line import VllmLine

            return replace(read, vllm=VllmLine(tuple(launcher.engine_pieces), read_file=read_file))
    if (topic := help_topic(arguments)) is not None:
        return replace(read, topic=topic)
    raise_all(validate_all())
    if launcher.has_several_models:
        return read
    if OMNI in arguments:  # before the flags of vllm-omni, which are not known here
        raise InputError(*unsupported_faults(parse_line(split_flags((OMNI,))).options))
    return replace(read, own=read_line(read.parts, read_file))


def _reject_flags_of_several(launcher: LauncherLine, parts: Sequence[ParsedOption]) -> None:
    """Rejects flags of a router if there is no router, and several models that are named after flags."""
    several = {flag.name for flag in GROUPS["Several models"]}
    if launcher.is_behind_router:
        several -= _OF_ONE_MODEL
    for flag in filter(several.__contains__, launcher.names):
        raise InputError(f"{flag} is for several models: name them in a file for --models, or before all flags.")
    unnamed = parts if parts and parts[0].typed else ()
    others = [each.arguments[0] for each in unnamed if not each.typed]
    models = [argument for argument in others if argument != "--" and not is_stray(argument)]
    has_unknown = any(each.typed and each.flag is None for each in unnamed)  # the argument after it may be its value
    is_changed = any(map(changed_word, models))  # a flag with another dash, which later checks explain
    if len(models) > 1 and not has_unknown and not is_changed:
        raise InputError(f"several models must be named before all flags: vllm-cli serve {' '.join(models)} ...")


def _reject_repetition(parts: Iterable[ParsedOption]) -> None:
    """Rejects a server's command where MODEL belongs: first, or after flags that are known."""
    rest = dropwhile(lambda part: part.flag is not None, parts)
    if repeated := repeated_arguments([argument for part in rest for argument in part.arguments]):
        why = "the entrypoint of an image has them, too"
        raise InputError(f"the arguments `{' '.join(repeated)}` stand twice ({why}): leave them out.")


def choose_engine(launcher: LauncherLine) -> str:
    """Returns `embedded` or `vllm`. Raises InputError if another engine is named, or a value is missing."""
    if launcher.faults:
        raise InputError(launcher.faults[-1])
    wanted = launcher.wanted_engine
    if wanted not in ENGINES:
        if not launcher.value(ENGINE.name):
            raise_all(validate_all())  # VCLI_ENGINE is one of these errors
        raise InputError(f"--engine {wanted!r} is not one of {', '.join(ENGINES)}{did_you_mean(wanted, ENGINES)}.")
    return launcher.engine


def raise_all(errors: Iterable[EnvError]) -> None:
    """Raises InputError with all of these errors, if there are any."""
    if lines := list(map(str, errors)):
        raise InputError("\nError: ".join(lines))
