"""The start that is checked: the words of `vllm serve`, read with argparse and the flags of this vLLM.

argparse itself splits the words, completes abbreviations and counts values, so nothing differs from vLLM.
It converts no value: `flag_values` checks each, and all faults are found at once; `flag_rules` has what flags
ask of each other. Before the flags of this vLLM are recorded, only those are read that other checks ask for.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

from base.wording import list_some
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.files.model.file_plan import FilePlan
from startup.ground.serve_words import STRAY_REMEDY, is_stray, split
from startup.session.preflight.report import USAGE, Finding, error, warning
from startup.vllm.facts import EXECUTOR, FlagFact, ValueKind, VllmFacts, is_named_now
from startup.vllm.installed import InstalledVllm
from startup.vllm.known_flags import num_values
from startup.vllm.preflight.flag_values import FlagValueError, parse_value, range_problem
from startup.vllm.preflight.words import WordsError, prepare_words

_HELP: Final = ("-h", "--help")
_MAX_MATCHES: Final = 5
_MAX_NAMES: Final = 8

_REGISTERED: Final[dict[str, tuple[str, Callable[[str], str]]]] = {
    "--tool-call-parser": ("--tool-parser-plugin", str),
    "--reasoning-parser": ("--reasoning-parser-plugin", str),
    "--load-format": ("", str.lower),
    "--attention-backend": ("", str.upper),
    "--config-format": ("", str),
    EXECUTOR: ("", str),
}
"""Flags for a registered name: the flag of a plugin that may know more, and how vLLM writes the value."""
_ANY: Final = ("AUTO", "auto")
"""Values of --attention-backend and --config-format that are no names."""

_USUAL_KINDS: Final[dict[str, ValueKind]] = {
    "--tensor-parallel-size": "int", "--pipeline-parallel-size": "int", "--prefill-context-parallel-size": "int",
    "--data-parallel-size": "int", "--data-parallel-size-local": "int", "--max-lora-rank": "int",
    "--gpu-memory-utilization": "float", "--kv-cache-memory-bytes": "size", "--hf-overrides": "json or text",
    "--max-model-len": "size or auto",
}  # fmt: skip
"""How all versions read the values that checks ask for, if not as texts."""
_LONG_NAMES: Final = {
    "-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size",
    "-pcp": "--prefill-context-parallel-size", "-dpl": "--data-parallel-size-local", "-q": "--quantization",
}  # fmt: skip


class VllmFlag(NamedTuple):
    """A flag on the command line or in the file of `--config`."""

    fact: FlagFact
    values: tuple[str, ...]
    """Empty for a switch."""
    option: str
    """The option as argparse completed it; one of `fact.opposites` for a switch that is turned off."""

    @property
    def is_on(self) -> bool:
        """Whether a switch is turned on."""
        return self.option in self.fact.names


@dataclass
class ServeArguments:
    """What argparse makes of the words, and its complaints."""

    given: list[VllmFlag] = field(default_factory=list)
    model: str | None = None
    """MODEL, or `model` of the file of `--config`."""
    unknown: list[str] = field(default_factory=list)
    """Words that no flag takes."""
    problems: list[str] = field(default_factory=list)
    """Faults with which vLLM ends before or while it reads the words."""

    @property
    def is_read(self) -> bool:
        """Whether the words could be split at all."""
        return not self.problems

    def value(self, name: str) -> str | None:
        """The last value of a flag; None if it is not given, or given without a value."""
        found = self.last(name)
        return found.values[-1] if found is not None and found.values else None

    def last(self, name: str) -> VllmFlag | None:
        """The flag where it is given last."""
        return next((flag for flag in reversed(self.given) if flag.fact.name == name), None)

    def all_values(self, name: str) -> list[str]:
        """The values of all places of a flag."""
        return [value for flag in self.given if flag.fact.name == name for value in flag.values]

    def has(self, name: str) -> bool:
        """Whether a switch is on, or another flag is given."""
        found = self.last(name)
        return found is not None and found.is_on


@dataclass(frozen=True)
class CheckedStart:
    """One start; its values are those that vLLM would use, as far as they can be known."""

    vllm: InstalledVllm
    facts: VllmFacts
    arguments: ServeArguments
    file_plan: FilePlan | None
    """Where model and tokenizer are; None if no model is named."""

    def value(self, name: str) -> Any:
        """The converted value of a flag; None if it is not given, or not valid."""
        found = self.arguments.last(name)
        if found is None or not found.values:
            return None
        try:
            return parse_value(found.fact, found.values[-1])
        except FlagValueError:
            return None

    def number(self, name: str, default: int) -> int:
        """A flag's whole number."""
        value = self.value(name)
        return value if isinstance(value, int) else default

    def has(self, *names: str) -> bool:
        """Whether one of the flags is given; a switch must be on."""
        return any(map(self.arguments.has, names))

    @property
    def is_known(self) -> bool:
        """Whether vLLM's own rules decide: those of a newer release or of a plugin may differ."""
        return self.vllm.is_tested and not self.facts.plugins

    @property
    def load_format(self) -> str:
        """In lower case, as vLLM compares it."""
        return str(self.value("--load-format") or "auto").lower()


def read_arguments(words: Sequence[str], facts: VllmFacts) -> ServeArguments:
    """Reads the words; never raises for a fault."""
    arguments = ServeArguments()
    try:
        prepared = prepare_words(words)
    except WordsError as err:
        arguments.problems.append(str(err))
        return arguments
    if not facts.flags:
        arguments.given += _given_usually(prepared)
        return arguments
    parser = _Parser(arguments)
    for fact in _reachable(facts.flags, prepared):
        parser.add_argument(*fact.names, action=_Record, nargs=fact.nargs, dest=fact.parameter, fact=fact)
    try:
        _, rest = parser.parse_known_args(prepared)
    except _ParserError as err:
        arguments.problems.append(_in_our_words(str(err)))
        return arguments
    arguments.unknown = rest
    return arguments


def argument_findings(start: CheckedStart) -> Iterator[Finding]:
    """Every fault of the words."""
    arguments = start.arguments
    for problem in arguments.problems:
        yield error(USAGE, problem)
    for problem in describe_unknown(arguments.unknown, start.facts):
        yield (warning if start.facts.plugins else error)(USAGE, problem)
    for given in arguments.given:
        yield from _value_findings(start, given)
    for flag in _REGISTERED:
        yield from _name_findings(start, flag)
    if (name := arguments.value("--config")) is not None:
        yield warning("config_file", f"vLLM does not read --config={name}: write `--config {name}`, as two words")


def _value_findings(start: CheckedStart, given: VllmFlag) -> Iterator[Finding]:
    for text in given.values:
        try:
            problem = range_problem(given.fact, parse_value(given.fact, text))
        except FlagValueError as err:
            # What a plugin adds to the choices of a flag is not known.
            is_certain = given.fact.choices is None or not start.facts.plugins
            yield (error if is_certain else warning)(USAGE, str(err))
            continue
        if problem is not None:
            is_last = given is start.arguments.last(given.fact.name)
            yield (error if is_last and start.is_known else warning)("range", problem)


def _given_usually(words: Sequence[str]) -> Iterator[VllmFlag]:
    """The flags of words whose meaning in this vLLM is not known."""
    for given in split(words, num_values):
        if given.flag:
            name = _LONG_NAMES.get(given.name, given.name)
            kind = _USUAL_KINDS.get(name, "text")
            yield VllmFlag(FlagFact((name,), kind), tuple(given.values), name)


def _name_findings(start: CheckedStart, flag: str) -> Iterator[Finding]:
    """Whether vLLM has registered the value of a flag, or it is a class with its module.

    Without --enable-auto-tool-choice vLLM does not look; a platform may take another executor.
    """
    plugin, fold = _REGISTERED[flag]
    given = start.value(flag)
    if not isinstance(given, str) or not given or start.value(plugin) or fold(given) in _ANY or "." in given:
        return
    is_used = flag != EXECUTOR and (flag != "--tool-call-parser" or start.has("--enable-auto-tool-choice"))
    if (problem := name_problem(start.facts, flag, fold(given), given)) is not None:
        yield (error if is_used and not start.facts.plugins else warning)(flag[2:].replace("-", "_"), problem)


def name_problem(facts: VllmFacts, flag: str, name: str, given: str) -> str | None:
    """What is wrong with a name of this flag; None if it is registered, or nothing is known."""
    names = facts.names.get(flag, ())
    if not names or name in names or is_named_now(flag, name):
        return None
    guess = did_you_mean(name, names) or f": choose one of {list_some(names, _MAX_NAMES)}"
    return f"this vLLM has no {flag} {given!r}{guess}"


def describe_unknown(words: Iterable[str], facts: VllmFacts) -> Iterator[str]:
    """A line for each unknown flag; a word without a flag is named alone."""
    names = [name for fact in facts.flags for name in _options(fact)]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("-"):
            yield f"vLLM has no flag {name}{did_you_mean(name, names)}"
        elif is_stray(word):
            yield f"unexpected word {word!r}: {STRAY_REMEDY}"
        elif all(not other.startswith("-") for other in words):
            yield f"unexpected word {word!r}: MODEL is one word, given first"


class _Record(argparse.Action):
    """Stores the flag with its values; converts nothing."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, fact: FlagFact, nargs: int | str | None) -> None:
        super().__init__(_options(fact), dest, nargs=nargs, default=argparse.SUPPRESS)
        self.fact = fact

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """A value is a list of words, one word, or None for an optional one that is missing."""
        assert isinstance(parser, _Parser)
        words = () if values is None else (values,) if isinstance(values, str) else tuple(values)
        parser.arguments.given.append(VllmFlag(self.fact, words, option or self.fact.name))


class _RecordModel(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        assert isinstance(parser, _Parser)
        parser.arguments.model = values


class _ParserError(Exception):
    """argparse would end the program."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, arguments: ServeArguments) -> None:
        super().__init__(prog="vllm serve", add_help=False)
        self.arguments = arguments
        self.add_argument("model_tag", nargs="?", action=_RecordModel, default=None)
        self.add_argument(*_HELP, action="store_true")

    def error(self, message: str) -> NoReturn:
        raise _ParserError(message)


def _reachable(flags: Iterable[FlagFact], words: Iterable[str]) -> Iterator[FlagFact]:
    """The flags that one of the words may name or abbreviate: adding all 300 takes 8 ms."""
    prefixes = tuple({word.partition("=")[0] for word in words if word.startswith("--") and word != "--"})
    has_short = any(word.startswith("-") and not word.startswith("--") for word in words)
    for flag in flags:
        is_short = has_short and any(not name.startswith("--") for name in flag.names)
        if is_short or any(option.startswith(prefix) for option in _options(flag) for prefix in prefixes):
            yield flag


def _options(flag: FlagFact) -> tuple[str, ...]:
    return (*flag.names, *flag.opposites)


def _in_our_words(message: str) -> str:
    """argparse's complaint without its prefix `argument -tp/--tensor-parallel-size: `."""
    names, found, reason = message.partition(": ")
    if names == "ambiguous option":
        option, _, matches = reason.partition(" could match ")
        if option in REPLACEMENTS:
            return f"vLLM has no flag {option}{did_you_mean(option, ())}"
        return f"{option} may stand for {list_some(matches.split(', '), _MAX_MATCHES)}: write the whole name"
    if not found or not names.startswith("argument "):
        return message
    options = names.removeprefix("argument ").split("/")
    name = next((option for option in options if option.startswith("--")), options[0])
    return f"{name} {reason.replace('expected', 'needs')}"
