"""Describes the start that is checked, and finds faults in its command line and in the flags' values.

Until this vLLM's flags are recorded, only the values of flags that the launcher reads are checked.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from base.json_depth import JsonDepthError, read_json
from base.json_form import json_fault, json_form
from base.wording import list_some
from envs.suggestion import changed_word, did_you_mean, former_form, hidden_character
from startup.session.preflight.report import USAGE, Finding, error, warning
from startup.settings.flag import Flag, Shape, parse_size
from startup.settings.serve_arguments import NO_VALUE, STRAY_REMEDY, ParsedOption, is_stray
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.json_shape import limit_problem, shape_problem
from startup.vllm_arguments.vllm_line import CONFIG, VllmLine
from startup.vllm_arguments.vllm_record import CONNECTORS, EXECUTOR, VllmRecord, is_named_now

_MAX_NAMES: Final = 8

_REGISTERED: Final[dict[str, tuple[str, Callable[[str], str]]]] = {
    "--tool-call-parser": ("--tool-parser-plugin", str),
    "--reasoning-parser": ("--reasoning-parser-plugin", str),
    "--load-format": ("", str.lower),
    "--attention-backend": ("", str.upper),
    "--config-format": ("", str),
    EXECUTOR: ("", str),
}
"""Flag whose value is a registered name -> the flag for a plugin that may add names, and a function that
converts the value to vLLM's spelling."""
_ANY: Final = ("AUTO", "auto")
"""Values of --attention-backend and --config-format that leave the choice to vLLM."""
_NEVER_EMPTY: Final = frozenset(
    (
        "--model",
        "--tokenizer",
        "--served-model-name",
        "--allowed-media-domains",
        "--config-format",
        "--hf-overrides",
        "--logits-processors",
        "--mamba-backend",
        "--numa-bind-nodes",
        "--numa-bind-cpus",
        "--device-ids",
        "--data-parallel-backend",
        "--additional-config",
        "--optimization-level",
    )
)
"""Flags that vLLM rejects if they are empty, but only after it has read the command line."""
_NEEDED: Final = {"--enable-auto-tool-choice": "--tool-call-parser", "--enable-log-outputs": "--enable-log-requests"}
_LEAST: Final = {"--max-num-batched-tokens": "--max-num-seqs", "--max-cpu-loras": "--max-loras"}
"""Flag with a number -> the flag whose number is the minimum."""


@dataclass(frozen=True)
class GivenStart:
    """The start that is checked, with the values that vLLM would use, if they are known."""

    vllm: InstalledVllm
    line: VllmLine

    @property
    def record(self) -> VllmRecord:
        return self.line.record

    def value(self, name: str) -> Any:
        """The converted value of a flag. None if the flag is not given or its value is not valid."""
        found = self.line.last(name)
        if found is None or found.flag is None or found.text is None:
            return None
        try:
            return parse_value(found.flag, found.text)
        except FlagValueError:
            return None

    def number(self, name: str, default: int) -> int:
        """The whole number that a flag gives, or the default."""
        value = self.value(name)
        return value if isinstance(value, int) else default

    def has(self, *names: str) -> bool:
        """Whether one of these flags is given. A switch must be on."""
        return self.line.has(*names)

    def all_values(self, name: str) -> list[str]:
        return [value for option in self.line.options if option.name == name for value in option.values]

    @property
    def is_known(self) -> bool:
        """Whether vLLM's own rules are known. A newer release or a plugin may have other rules."""
        return self.vllm.is_tested and not self.record.plugins

    @property
    def load_format(self) -> str:
        """The load format in lower case, as vLLM compares it."""
        return str(self.value("--load-format") or "auto").lower()


def argument_findings(start: GivenStart) -> Iterator[Finding]:
    """Yields every fault in the arguments of the command line."""
    for problem in start.line.faults:
        yield error(USAGE, problem)
    for problem in describe_unknown(start.line):
        yield (warning if start.record.plugins else error)(USAGE, problem)
    for option in start.line.options:
        yield from _value_findings(start, option)
    for flag in _REGISTERED:
        yield from _name_findings(start, flag)
    if (name := start.line.value(CONFIG)) is not None:
        yield warning("config_file", f"vLLM does not read --config={name}: write `--config {name}`, as two arguments")


def _value_findings(start: GivenStart, option: ParsedOption) -> Iterator[Finding]:
    name, is_last = option.name, option is start.line.last(option.name)
    has_model = name == "--model" and start.line.model  # MODEL takes precedence
    if name in _NEVER_EMPTY and "" in option.values and is_last and not has_model:
        text = f"{name} is empty: set the variable that stands in its place, or leave the argument out for the default"
        yield (error if start.is_known else warning)(USAGE, _with_place(option, text))
        return
    assert option.flag is not None
    for text in option.values:
        try:
            problem = range_problem(option.flag, parse_value(option.flag, text))
        except FlagValueError as err:
            # A plugin may add choices that are not known here.
            is_certain = option.flag.choices is None or not start.record.plugins
            yield (error if is_certain else warning)(USAGE, _with_place(option, str(err)))
            continue
        if problem is not None:
            yield (error if is_last and start.is_known else warning)("range", _with_place(option, problem))


def _with_place(option: ParsedOption, text: str) -> str:
    """If the setting is from the file, replaces the flag at the text's beginning by the setting's place."""
    return f"{option.where}{text.removeprefix(option.name)}" if option.where else text


def _name_findings(start: GivenStart, flag: str) -> Iterator[Finding]:
    """Reports a flag's value that vLLM has not registered, unless the value is the import path of a class.

    Without --enable-auto-tool-choice, an unknown tool parser is a warning, because vLLM does not look it up.
    An unknown executor is a warning, because a platform may use another executor.
    """
    plugin, fold = _REGISTERED[flag]
    value = start.value(flag)
    if not isinstance(value, str) or not value or start.value(plugin) or fold(value) in _ANY or "." in value:
        return
    is_used = flag != EXECUTOR and (flag != "--tool-call-parser" or start.has("--enable-auto-tool-choice"))
    if (problem := name_problem(start.record, flag, fold(value), value)) is not None:
        yield (error if is_used and not start.record.plugins else warning)(flag[2:].replace("-", "_"), problem)


def name_problem(record: VllmRecord, flag: str, name: str, value: str) -> str | None:
    """A message if this vLLM lacks the name that a flag gives. None if it has it, or nothing is recorded."""
    names = record.names.get(flag, ())
    if not names or name in names or is_named_now(flag, name):
        return None
    guess = did_you_mean(name, names) or f": choose one of {list_some(names, _MAX_NAMES)}"
    return f"this vLLM has no {flag} {value!r}{guess}"


def describe_unknown(line: VllmLine) -> Iterator[str]:
    """Yields a line for each unknown flag, and if all flags are known, each stray or unexpected argument."""
    options = [option for flag in line.record.flags for option in flag.options]
    for each in line.unknown:
        yield f"{each.where}: vLLM has no flag {each.typed}{did_you_mean(each.typed, options)}".removeprefix(": ")
    changed = {argument: None if line.unknown else changed_word(argument) for argument in line.others}
    for argument in line.others if line.record.flags else ():
        if is_stray(argument):
            yield f"unexpected argument {argument!r}: {STRAY_REMEDY}"
        elif changed[argument]:
            yield f"unexpected argument {argument!r} {changed[argument]}"
        elif not line.unknown and not any(changed.values()):
            yield f"unexpected argument {argument!r}: MODEL is one argument, given first"


def rule_findings(start: GivenStart) -> Iterator[Finding]:
    """Reports flags that need or exclude other flags, as warnings if this release's rules are not known."""
    for problem in _rule_problems(start) if start.record.flags else ():
        yield (error if start.is_known else warning)("flags", problem)


def _rule_problems(start: GivenStart) -> Iterator[str]:
    for switch, needed in _NEEDED.items():
        if start.has(switch) and not (start.value(needed) or start.has(needed)):
            yield f"{switch} needs {needed}"
    for flag, other in _LEAST.items():
        number, least, is_read = start.value(flag), start.value(other), "lora" not in flag or start.has("--enable-lora")
        if isinstance(number, int) and isinstance(least, int) and number < least and is_read:
            yield f"{flag} {number} must be at least {other} {least}"
    if start.has("--headless") and start.number("--api-server-count", 0) > 0:
        yield "--headless starts no API server: remove --api-server-count"
    transfer = start.value("--kv-transfer-config")
    if isinstance(transfer, dict) and not transfer.get("kv_connector_module_path"):
        name = transfer.get("kv_connector")
        if isinstance(name, str) and (problem := name_problem(start.record, CONNECTORS, name, name)):
            yield problem.replace(CONNECTORS, "--kv-transfer-config kv_connector")


_OBJECT: Final = re.compile(r"(?s)^\s*{.*}\s*$")
_MAX_CHOICES: Final = 12
_QUOTED: Final = re.compile(r'("(?:[^"\\]|\\.)*")')
_BARE_SIZE: Final = re.compile(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b")


class FlagValueError(ValueError):
    """vLLM rejects the value."""


def parse_value(flag: Flag, text: str) -> Any:
    """The value as vLLM converts it. None if an optional flag has no value. Raises FlagValueError."""
    value = None if flag.is_optional and text in NO_VALUE else _convert(flag, text)
    if flag.choices is not None and value not in flag.choices:
        choices = [str(choice) for choice in flag.choices if choice is not None]
        guess = did_you_mean(text, choices)
        raise FlagValueError(f"{flag.name} {text!r} is not one of {list_some(choices, _MAX_CHOICES)}{guess}")
    return value


def range_problem(flag: Flag, value: Any) -> str | None:
    """Why a number is outside of the range that vLLM declares. None for a number inside of it."""
    problem = limit_problem(flag.limits, value)
    return problem and f"{flag.name} {problem}"


def _convert(flag: Flag, text: str) -> Any:
    convert, fault = _CONVERTERS[flag.kind]
    try:
        return convert(text, flag)
    except FlagValueError:
        raise
    except (OSError, ValueError) as err:
        raise FlagValueError(f"{flag.name} {text!r} {fault}{_reason(err, flag, text)}") from err


def _reason(err: Exception, flag: Flag, text: str) -> str:
    if not isinstance(err, json.JSONDecodeError | JsonDepthError):
        return hidden_character(text)
    return json_form(text) or former_form(flag.name) or json_fault(text) or f": {err}"


def _parse_object(text: str, flag: Flag) -> Any:
    content = read_json(_expand_sizes(text))
    if not isinstance(content, dict):
        hint = (isinstance(content, str) and json_form(text)) or former_form(flag.name)
        raise FlagValueError(f"{flag.name} {text!r} is not a JSON object{hint}")
    if (problem := shape_problem(flag.shape or Shape(), content, flag.name)) is not None:
        raise FlagValueError(problem)
    return content


def _expand_sizes(text: str) -> str:
    """The JSON text with sizes outside of quotes, such as `80g`, written as numbers."""
    parts = _QUOTED.split(text)
    parts[::2] = [_BARE_SIZE.sub(lambda match: str(parse_size(match[0])), part) for part in parts[::2]]
    return "".join(parts)


_CONVERTERS: Final[dict[str, tuple[Callable[[str, Flag], Any], str]]] = {
    "text": (lambda text, _: text, ""),
    "unknown": (lambda text, _: text, ""),
    "int": (lambda text, _: int(text), "is not a whole number"),
    "count": (lambda text, _: parse_size(text), "is not a whole number such as 4096, 4k or 4K"),
    "token limit": (
        lambda text, _: -1 if text.strip().lower() == "auto" else parse_size(text),
        "is neither auto nor a whole number such as 4096, 4k or 4K",
    ),
    "float": (lambda text, _: float(text), "is not a number"),
    "json": (lambda text, _: read_json(text), "is not JSON"),
    "json or text": (lambda text, _: read_json(text) if _OBJECT.match(text) else text, "is not JSON"),
    "object": (_parse_object, "is not JSON"),
    "lower": (lambda text, _: text.lower(), ""),
    "folded": (lambda text, _: text.lower().replace("-", "_"), ""),
}
"""`Flag.kind` -> vLLM's conversion, and what is wrong with a text if the conversion raises ValueError."""
