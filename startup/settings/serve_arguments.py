"""Splits the arguments after `vllm-cli serve` between the launcher and the engine, and chooses the engine.

A link named `vllm` to the console script behaves like vLLM's command, so that images and scripts need no
change. `vllm serve` starts through the launcher. The installed vLLM runs every other subcommand
(`startup.vllm.vllm_main.run_other_command`).

A start waits until the front process has imported this module. So the module imports only `envs.foreign` and
modules that the interpreter itself imports at its start.
"""

import os
import sys

from envs import foreign

TYPE_CHECKING = False  # the import of `typing` would delay the start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from startup.settings.flag import Flag

    NumValues = Callable[[str], int | str | None]

LAUNCHER_FLAGS = {
    "--engine": 1,
    "--preflight-only": 0,
    "--no-preflight-only": 0,
    "--json": 0,
    "--no-json": 0,
    "--standby": 1,
    "--idle-stop": 1,
    "--idle-sleep": 1,
    "--restart": 1,
    "--preflight": 1,
    "--listen-when-ready": 0,
    "--no-listen-when-ready": 0,
    "--startup-timeout": 1,
    "--engine-watchdog-timeout": 1,
    "--cuda-graphs": 1,
    "--download-timeout": 1,
    "--compile-cache": 1,
    "--startup-report": 1,
    "--prefetch": 1,
    "--models": 1,
    "--memory-budget": 1,
    "--max-running": 1,
    "--on-swap": 1,
    "--max-wait": 1,
    "--max-waiting": 1,
    "--log-format": 1,
    "--web-page": 0,
    "--no-web-page": 0,
}
"""The launcher's flags, with the number of their values. If the engine is vLLM, it gets all other arguments.

`make docs` writes them from the settings, whose import would delay a warm start.
"""

OMNI = "--omni"
"""With this flag, vLLM leaves the whole command line to the package vllm-omni."""

STRAY_REMEDY = "remove the empty argument, or the characters after a `\\` at the end of a line"
_LIKE_A_FLAG = (*"-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u200b\ufeff", '"-', "'-")
"""How an argument begins that is meant as a flag, but that a word processor or quotes have changed."""
_HELP = ("-h", "--help")
_OF_ROUTER = (
    ("--idle-stop", "VCLI_IDLE_STOP"),
    ("--idle-sleep", "VCLI_IDLE_SLEEP"),
    ("--restart", "VCLI_RESTART"),
)
_ENGINES = ("embedded", "vllm")
_PROGRAMS = ("vllm", "vllm-cli")
_MODULES = ("vllm_cli", "vllm.entrypoints.")
_SHELLS = ("sh", "bash", "dash", "ash")
_OFF = "--no-"
"""How the name of a switch begins that is turned off."""
NO_VALUE = ("", "None")
"""Values of an optional flag that mean no value."""
_LEVEL = "-O"
_EAGER = ("--enforce-eager", "-O0", "-O.mode=0")


class ParsedOption:
    """An option with its values, or one other argument, or `--` with all arguments that follow it."""

    __slots__ = ("flag", "keys", "name", "option", "typed", "values", "where", "arguments", "fault")

    def __init__(self, arguments: "Sequence[str]", typed: str = "", keys: str = "") -> None:
        self.arguments = arguments
        """The given arguments. Empty for a setting of a file."""
        self.typed = typed
        """The name that is given, with dashes instead of underscores. Empty for other arguments."""
        self.keys = keys
        """The keys after the name, such as `a.b` in `--flag.a.b`."""
        self.flag: Flag | None = None
        """The flag that the name stands for. None if the table that reads the arguments does not have it."""
        self.name = self.option = typed
        """The flag's first name, or `typed`. `option` is the full name that is given, such as `--no-x`."""
        value = _attached_value(arguments[0]) if arguments else None
        self.values: Sequence[str] = arguments[1:] if value is None else (value,)
        """The values. `--flag=` has the empty text. A switch may have `true`, `false` or no value."""
        self.where = ""
        """The setting's place in the file, such as `serve.yaml: port`. Empty on the command line."""
        self.fault = ""
        """Why the table of flags rejects the option. A fault of a value is found later."""

    @classmethod
    def of(
        cls, flag: "Flag", values: "Sequence[str]", option: str = "", arguments: "Sequence[str]" = ()
    ) -> "ParsedOption":
        """An option of a flag whose full name is given."""
        parsed = cls((), option or flag.name)
        parsed.flag = flag
        parsed.name = flag.name
        parsed.values = values
        parsed.arguments = arguments
        return parsed

    @classmethod
    def spelled(cls, flag: "Flag", values: "Sequence[str]") -> "ParsedOption":
        """An option of a flag, with arguments that have full names.

        In an argument of its own, a value that begins with a dash would be read as a flag.
        """
        option = cls.of(flag, values)
        if flag.nargs == 0:
            option.typed = flag.name if option.is_on else flag.opposites[0]
            option.arguments = (option.typed,)
        elif len(values) > 1 and not any(value.startswith("-") for value in values):
            option.arguments = (flag.name, *values)
        else:
            option.arguments = [f"{flag.name}={value}" for value in values]
        return option

    @property
    def spelling(self) -> str:
        """The name with its keys, such as `--flag.a.b`."""
        return f"{self.typed}.{self.keys}" if self.keys else self.typed

    @property
    def text(self) -> str | None:
        """The last value, which counts unless the flag is a list. None if the option has no value."""
        is_optional = self.flag is not None and self.flag.is_optional
        is_given = len(self.values) > 0 and not (is_optional and self.values[-1] in NO_VALUE)
        return self.values[-1] if is_given else None

    @property
    def is_on(self) -> bool:
        """Whether a switch is on, or another flag has a value other than false."""
        is_off = self.option.startswith(_OFF) if self.flag is None else self.option in self.flag.opposites
        return not is_off and (not self.values or (self.text or "false").lower() != "false")


def split(arguments: "Iterable[str]", num_values: "NumValues" = lambda _: None) -> "Iterator[ParsedOption]":
    """Splits a command line as argparse does (`with_values`)."""
    return with_values(cut(arguments), num_values)


def cut(arguments: "Iterable[str]") -> list[ParsedOption]:
    """Finds the flags of a command line. Each argument stands alone until `with_values`, apart from `--`."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    pieces = [ParsedOption((argument,), *_name(argument)) for argument in arguments[:end]]
    return [*pieces, ParsedOption(arguments[end:])] if arguments[end:] else pieces


def with_values(pieces: "Sequence[ParsedOption]", num_values: "NumValues") -> "Iterator[ParsedOption]":
    """Yields the flags with their values, and all other arguments.

    `num_values` returns the number of a flag's values, like argparse's `nargs`: 0, 1, `?` or `+`. It returns
    None for an unknown flag, which gets no values. A required value may begin with a dash if it is not a
    known flag.
    """
    begin = 0
    while begin < len(pieces):
        piece, end = pieces[begin], begin + 1
        if piece.typed and _attached_value(piece.arguments[0]) is None:
            end += _count_values(pieces, end, num_values(piece.typed), num_values)
        if end > begin + 1:
            piece = ParsedOption([each.arguments[0] for each in pieces[begin:end]], piece.typed, piece.keys)
        yield piece
        begin = end


def join(parts: "Iterable[ParsedOption]") -> list[str]:
    """All arguments of these parts."""
    return [argument for part in parts for argument in part.arguments]


def is_flag_like(argument: str) -> bool:
    """Whether an argument looks like a flag and so ends a list of values."""
    name = argument.partition("=")[0]
    return len(argument) > 1 and argument[0] == "-" and not argument[1].isdigit() and " " not in name


def is_stray(argument: str) -> bool:
    r"""Whether an argument is empty or begins with white space or `\`, as after a `\` within a line."""
    return not argument[:1].strip("\\ \t\r\n")


def normalise(name: str) -> str:
    """Replaces underscores of a flag: `--max_model_len` becomes `--max-model-len`."""
    return name.replace("_", "-") if name.startswith("--") else name


def help_topic(arguments: "Iterable[str]") -> str | None:
    """The topic in `--help=TOPIC`. Empty for a plain `--help`. None if there is no flag for help."""
    asking = (argument for argument in _before_dashes(arguments) if _name(argument)[0] in _HELP)
    return next((_attached_value(argument) or "" for argument in asking), None)


def is_for_information(arguments: "Iterable[str]") -> bool:
    """Whether the arguments have a flag for help or the version, so that no server starts."""
    return any(_name(argument)[0] in (*_HELP, "-v", "--version") for argument in _before_dashes(arguments))


def repeated_arguments(arguments: "Sequence[str]") -> "Sequence[str]":
    """The first arguments if they run a server's command again, as behind the entrypoint of an image.

    They are models if there are folders of these names.
    """
    repeated = arguments[: _count_command_arguments(arguments)]
    return () if all(map(os.path.isdir, repeated)) else repeated


def is_eager(arguments: "Iterable[str]") -> bool:
    """Whether vLLM's arguments switch torch's compiler off."""
    return any(normalise(argument) in _EAGER for argument in arguments)


class CommandLine:
    """The arguments of `serve`, read once by one table of flags.

    This is the launcher's, the embedded engine's or vLLM's. With an engine's table, `options` begins with the
    settings in the file of `--config`.
    """

    def __init__(
        self, options: "Sequence[ParsedOption]", others: "Sequence[str]" = (), faults: "Sequence[str]" = ()
    ) -> None:
        self.options = options
        """The options that this table has, in order."""
        self.others = others
        """Arguments that belong to no flag, such as MODEL."""
        self.faults = faults
        """Why the arguments cannot be read. A fault of a value is found later."""

    def last(self, name: str) -> ParsedOption | None:
        """The option of a flag that counts. None if the flag is not given."""
        return next((option for option in reversed(self.options) if option.name == name), None)

    def value(self, name: str) -> str | None:
        """The last value of a flag. None if the flag is not given or has no value."""
        found = self.last(name)
        return None if found is None else found.text

    def values(self, name: str) -> "Sequence[str]":
        """The values of a flag that takes several values."""
        found = self.last(name)
        return () if found is None else found.values

    def has(self, *names: str) -> bool:
        """Whether one of these flags is given. A switch must be on, another flag must have a value."""
        return any(option is not None and option.is_on for option in map(self.last, names))


class LauncherLine(CommandLine):
    """The arguments of `serve`, split between the launcher and the engine."""

    def __init__(self, arguments: "Sequence[str]") -> None:
        options: list[ParsedOption] = []
        faults: list[str] = []
        super().__init__(options, (), faults)
        self.arguments = arguments
        self.pieces = cut(arguments)
        """The arguments as `cut` divides them, for tables that know further flags."""
        self.names: list[str] = []
        """The names of all flags in order, as far as they can be recognized without vLLM's."""
        self.engine_pieces: list[ParsedOption] = []
        """All other arguments, unchanged and in order, without the first `--`."""
        for part in with_values(self.pieces, LAUNCHER_FLAGS.get):
            if part.typed:
                self.names.append(part.typed)
            if part.arguments[0] == "--":
                self.engine_pieces += cut(part.arguments[1:])
            elif part.typed not in LAUNCHER_FLAGS:
                self.engine_pieces.append(part)
            elif not LAUNCHER_FLAGS[part.typed]:
                switch = ParsedOption((), part.typed)
                switch.name = part.typed.replace(_OFF, "--", 1)
                options.append(switch)
            elif part.values:
                options.append(part)
            else:
                faults.append(f"Option {part.typed!r} requires an argument.")

    @property
    def engine_arguments(self) -> list[str]:
        """The arguments of `engine_pieces`."""
        return join(self.engine_pieces)

    @property
    def has_several_models(self) -> bool:
        """Whether a router for several models starts: two arguments before all flags, or --models."""
        begin = self.arguments[:2]
        if len(begin) == 2 and not any(map(is_flag_like, begin)):
            return not is_stray(begin[1]) and not begin[1].startswith(_LIKE_A_FLAG)
        return "--models" in self.names

    @property
    def is_behind_router(self) -> bool:
        """Whether the command line or the environment requests a router in front of a single model."""
        return any(self.value(flag) or foreign.text_of(variable) for flag, variable in _OF_ROUTER)

    @property
    def wanted_engine(self) -> str:
        """The value of --engine or VCLI_ENGINE. If both are missing, `vllm` under this name, else `auto`."""
        default = "vllm" if is_called_as_vllm() and not foreign.is_set("VCLI_ENGINE") else "auto"
        return self.value("--engine") or foreign.text_of("VCLI_ENGINE") or default

    @property
    def engine(self) -> str:
        """`embedded` or `vllm`. Any other value counts as `auto`."""
        if self.wanted_engine in _ENGINES:
            return self.wanted_engine
        return "vllm" if vllm_file() else "embedded"


def is_called_as_vllm() -> bool:
    """Whether this program was started under the name `vllm`."""
    return os.path.basename(sys.argv[0]) == "vllm"  # noqa: PTH119 - pathlib would delay every start


def vllm_file() -> str | None:
    """The file that `import vllm` would load. None if vLLM is not installed. A bare folder `vllm` is none."""
    specs = (finder.find_spec("vllm", None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec.origin for spec in specs if spec is not None), None)


def _before_dashes(arguments: "Iterable[str]") -> "Sequence[str]":
    arguments = list(arguments)
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _name(argument: str) -> tuple[str, str]:
    """The name and the keys of a flag. Both are empty for an argument that is no flag."""
    if not is_flag_like(argument):
        return "", ""
    if argument.startswith(_LEVEL):
        return "--optimization-level", ""
    name, _, keys = argument.partition("=")[0].partition(".")
    return normalise(name), keys


def _attached_value(argument: str) -> str | None:
    """The value in a flag's own argument, as in `--flag=value`, `-O3` and `-O=3`. None if it has no value."""
    if argument.startswith(_LEVEL):
        return argument.removeprefix(_LEVEL).removeprefix("=") if argument != _LEVEL else None
    _, is_attached, value = argument.partition("=")
    return value if is_attached else None


def _count_command_arguments(arguments: "Sequence[str]") -> int:
    folder, name = os.path.split(arguments[0] if arguments else "")
    is_program = not folder or folder.startswith(("/", ".")) or os.path.isfile(arguments[0])  # noqa: PTH113 - not org/vllm
    if is_program and name in _SHELLS and any(_is_for_code(argument) for argument in arguments[1:2]):
        return 2
    num = int(is_program and name in _PROGRAMS)
    if is_program and name.startswith("python") and arguments[1:2] == ["-m"] and arguments[2:3]:
        num = 3 * arguments[2].startswith(_MODULES)
    return num + (list(arguments[num : num + 1]) == ["serve"])


def _is_for_code(argument: str) -> bool:
    """Whether it is a shell's `-c`, alone or joined with other letters, as in `-lc`."""
    return argument.startswith("-") and argument.endswith("c")


def _count_values(
    pieces: "Sequence[ParsedOption]", begin: int, wanted: int | str | None, num_values: "NumValues"
) -> int:
    if not wanted or begin == len(pieces):
        return 0
    first = pieces[begin]
    if first.arguments[0] == "--" or (first.typed and (wanted == "?" or num_values(first.typed) is not None)):
        return 0
    end = begin + 1
    while wanted == "+" and end < len(pieces) and not is_flag_like(pieces[end].arguments[0]):
        end += 1
    return end - begin
