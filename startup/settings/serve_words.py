"""Splits the words after `vllm-cli serve` between the launcher and the engine, and chooses the engine.

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
"""The launcher's flags, with the number of their values. If vLLM is the engine, all other words go to vLLM.

`make docs` writes them from the settings, whose import would delay a warm start.
"""

OMNI = "--omni"
"""With this flag, vLLM leaves the whole command line to the package vllm-omni."""

STRAY_REMEDY = "remove the empty word, or the characters after a `\\` at the end of a line"
_LIKE_A_FLAG = (*"-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u200b\ufeff", '"-', "'-")
"""How a word begins that is meant as a flag, and is none, as a word processor or quotes have changed it."""
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
_LEVEL = "-O"
_EAGER = ("--enforce-eager", "-O0", "-O.mode=0")


class Given:
    """A flag with its values, or one other word, or `--` with all words that follow it."""

    __slots__ = ("flag", "keys", "known", "words")

    def __init__(self, words: "Sequence[str]", flag: str = "", keys: str = "") -> None:
        self.words = words
        self.flag = flag
        """The flag with dashes instead of underscores. Empty for other words."""
        self.keys = keys
        """The keys after the flag, such as `a.b` in `--flag.a.b`."""
        self.known: Flag | None = None
        """What this program knows about the flag (`startup.words.table`). None for other flags and words."""

    @property
    def name(self) -> str:
        """The flag with its keys, such as `--flag.a.b`."""
        return f"{self.flag}.{self.keys}" if self.keys else self.flag

    @property
    def values(self) -> "Sequence[str]":
        """The flag's values. The value of `--flag=` is the empty text."""
        value = _attached_value(self.words[0])
        return self.words[1:] if value is None else (value,)


def split(words: "Iterable[str]", num_values: "NumValues" = lambda _: None) -> "Iterator[Given]":
    """Splits a command line as argparse does (`with_values`)."""
    return with_values(cut(words), num_values)


def cut(words: "Iterable[str]") -> list[Given]:
    """Finds the flags of a command line. Each word stands alone until `with_values`, apart from `--`."""
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    pieces = [Given((word,), *_name(word)) for word in words[:end]]
    return [*pieces, Given(words[end:])] if words[end:] else pieces


def with_values(pieces: "Sequence[Given]", num_values: "NumValues") -> "Iterator[Given]":
    """Yields the flags with their values, and all other words.

    `num_values` returns the number of a flag's values, like argparse's `nargs`: 0, 1, `?` or `+`. It returns
    None for an unknown flag, which gets no values. A required value may begin with a dash if it is not a
    known flag.
    """
    begin = 0
    while begin < len(pieces):
        piece, end = pieces[begin], begin + 1
        if piece.flag and _attached_value(piece.words[0]) is None:
            end += _count_values(pieces, end, num_values(piece.flag), num_values)
        yield Given([each.words[0] for each in pieces[begin:end]], piece.flag, piece.keys) if end > begin + 1 else piece
        begin = end


def is_flag_like(word: str) -> bool:
    """Whether a word looks like a flag and so ends a list of values."""
    return len(word) > 1 and word[0] == "-" and not word[1].isdigit() and " " not in word.partition("=")[0]


def is_stray(word: str) -> bool:
    r"""Whether a word is empty or begins with white space or `\`, as after a `\` in the middle of a line."""
    return not word[:1].strip("\\ \t\r\n")


def normalise(name: str) -> str:
    """Replaces underscores of a flag: `--max_model_len` becomes `--max-model-len`."""
    return name.replace("_", "-") if name.startswith("--") else name


def help_topic(words: "Iterable[str]") -> str | None:
    """The topic in `--help=TOPIC`. Empty for a plain `--help`. None if the words have no flag for help."""
    return next((_attached_value(word) or "" for word in _before_dashes(words) if _name(word)[0] in _HELP), None)


def is_for_information(words: "Iterable[str]") -> bool:
    """Whether the words have a flag for help or the version, so that no server starts."""
    return any(_name(word)[0] in (*_HELP, "-v", "--version") for word in _before_dashes(words))


def repeated_words(words: "Sequence[str]") -> "Sequence[str]":
    """The first words if they run a server's command again, as behind the entrypoint of an image.

    They are models if there are folders of these names.
    """
    given = words[: _count_command_words(words)]
    return () if all(map(os.path.isdir, given)) else given


def is_eager(words: "Iterable[str]") -> bool:
    """Whether vLLM's words switch torch's compiler off."""
    return any(normalise(word) in _EAGER for word in words)


class ServeWords:
    """A command line, split between the launcher and the engine."""

    def __init__(self, words: "Sequence[str]") -> None:
        self.words = words
        self.pieces = cut(words)
        """The words, for readers that know further flags (`with_values`)."""
        self.flags: list[str] = []
        """The names of all flags in order, as far as they can be recognized without vLLM's."""
        self.own: dict[str, str] = {}
        """The launcher's flags, each with its last value. The value of a switch is `true` or empty."""
        self.engine_pieces: list[Given] = []
        """All other words, unchanged and in order, without the first `--`."""
        self.incomplete: str | None = None
        """A flag of the launcher that lacks its value. None if no flag lacks its value."""
        for given in with_values(self.pieces, LAUNCHER_FLAGS.get):
            if given.flag:
                self.flags.append(given.flag)
            if given.words[0] == "--":
                self.engine_pieces += cut(given.words[1:])
            elif given.flag not in LAUNCHER_FLAGS:
                self.engine_pieces.append(given)
            elif given.flag.startswith(_OFF):
                self.own[given.flag.replace(_OFF, "--", 1)] = ""
            elif not LAUNCHER_FLAGS[given.flag]:
                self.own[given.flag] = "true"
            elif given.values:
                self.own[given.flag] = given.values[-1]
            else:
                self.incomplete = given.flag

    @property
    def engine_words(self) -> list[str]:
        """The words of `engine_pieces`."""
        return [word for piece in self.engine_pieces for word in piece.words]

    @property
    def has_several_models(self) -> bool:
        """Whether a router for several models starts: two words before all flags name models, or --models."""
        begin = self.words[:2]
        if len(begin) == 2 and not any(map(is_flag_like, begin)):
            return not is_stray(begin[1]) and not begin[1].startswith(_LIKE_A_FLAG)
        return "--models" in self.flags

    @property
    def is_behind_router(self) -> bool:
        """Whether the command line or the environment requests a router in front of a single model."""
        return any(self.own.get(flag) or foreign.text_of(variable) for flag, variable in _OF_ROUTER)

    def engine(self, variable: str | None = None) -> str:
        """`embedded` or `vllm`. Any other value of --engine or VCLI_ENGINE counts as `auto`.

        `variable` is the value of VCLI_ENGINE, by default from this process's environment.
        """
        wanted = self.own.get("--engine") or (foreign.text_of("VCLI_ENGINE") if variable is None else variable)
        if wanted in _ENGINES:
            return wanted
        return "vllm" if vllm_file() else "embedded"


def is_called_as_vllm() -> bool:
    """Whether this program was started under the name `vllm`."""
    return os.path.basename(sys.argv[0]) == "vllm"  # noqa: PTH119 - pathlib would delay every start


def use_vllm_engine() -> None:
    """Makes vLLM the default engine of `serve`. `--engine` and VCLI_ENGINE still take precedence."""
    os.environ.setdefault("VCLI_ENGINE", "vllm")


def vllm_file() -> str | None:
    """The file that `import vllm` would load. None if vLLM is not installed. A bare folder `vllm` is none."""
    specs = (finder.find_spec("vllm", None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec.origin for spec in specs if spec is not None), None)


def _before_dashes(words: "Iterable[str]") -> "Sequence[str]":
    words = list(words)
    return words[: words.index("--")] if "--" in words else words


def _name(word: str) -> tuple[str, str]:
    """The name and the keys of a flag. Both are empty for a word that is no flag."""
    if not is_flag_like(word):
        return "", ""
    if word.startswith(_LEVEL):
        return "--optimization-level", ""
    name, _, keys = word.partition("=")[0].partition(".")
    return normalise(name), keys


def _attached_value(word: str) -> str | None:
    """The value in a flag's own word, as in `--flag=value`, `-O3` and `-O=3`. None if it has no value."""
    if word.startswith(_LEVEL):
        return word.removeprefix(_LEVEL).removeprefix("=") if word != _LEVEL else None
    _, is_attached, value = word.partition("=")
    return value if is_attached else None


def _count_command_words(words: "Sequence[str]") -> int:
    folder, name = os.path.split(words[0] if words else "")
    is_program = not folder or folder.startswith(("/", ".")) or os.path.isfile(words[0])  # noqa: PTH113 - not org/vllm
    if is_program and name in _SHELLS and any(word.startswith("-") and word.endswith("c") for word in words[1:2]):
        return 2
    num = int(is_program and name in _PROGRAMS)
    if is_program and name.startswith("python") and words[1:2] == ["-m"] and words[2:3]:
        num = 3 * words[2].startswith(_MODULES)
    return num + (list(words[num : num + 1]) == ["serve"])


def _count_values(pieces: "Sequence[Given]", begin: int, wanted: int | str | None, num_values: "NumValues") -> int:
    if not wanted or begin == len(pieces):
        return 0
    first = pieces[begin]
    if first.words[0] == "--" or (first.flag and (wanted == "?" or num_values(first.flag) is not None)):
        return 0
    end = begin + 1
    while wanted == "+" and end < len(pieces) and not is_flag_like(pieces[end].words[0]):
        end += 1
    return end - begin
