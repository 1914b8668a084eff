"""Reads the settings that a log shows, and finds those without which a failure may not occur."""

import re
from collections.abc import Sequence
from typing import Final

from startup.reports.causes.cause import KnownCause, find_word
from startup.reports.causes.log_line import LogLine
from startup.reports.causes.table import LISTS, PARTS, Part, is_of_vllm, is_wrapper, parts_of

_ARGUMENTS: Final = ("non-default args: ", "args: Namespace(")
_CONFIGURATION: Final = " LLM engine (v"
"""vLLM's line with the engine's configuration. Most of its values are not the user's."""
_CHOSEN: Final = ("speculative_config", "kv_cache_dtype", "tensor_parallel_size")
"""Values in that line that are rarely vLLM's own."""
_COMMAND: Final = re.compile(
    r"(?!.{0,200}?(?:Error|Exception|`|\b(?:[Pp]lease|[Tt]ry|[Uu]s(?:e|ing)|Run|[Ss]et|[Ww]ith|[Vv]ia) ))"
    r".{0,200}?(?:\bvllm serve\b|\bvllm\.entrypoints\.|\bdocker run\b|\bVLLM_[A-Z0-9_]{2,60}=)"
    r"|[-\s$#\"']{0,20}(?:(?:export|env|-e|--env) )?\"?[A-Z]{2,20}_[A-Z0-9_]{2,60}=\S"
    r"|[-\s$#\"']{0,20}--[a-z]\S*(?!\S)(?!(?: [a-z]+){3})"
)
"""Matches a command, also one after a prompt or variables, and a line of its flags. Sentences are neither."""
_ARGUMENT: Final = re.compile(r"\b([a-z][a-z0-9_]{2,60})'?(?:: |=)('[^']{0,80}'|\[\]|\{\}|[^\s,(){}']{1,80})?")
_INNER_VALUES: Final = re.compile(r"\{[^{}]{1,2000}\}|(?<=\w)\([^()]{1,2000}\)|\[[^\[\]]{1,2000}\]")
_DEEPEST_VALUE: Final = 4
_FLAG: Final = re.compile(r"(?<!\S)--([a-z][a-z0-9-]{2,60})(?:[= ]([^\s-]\S{0,80}))?")
_VARIABLE: Final = re.compile(
    r"\b((?:VLLM|(?:PY)?TORCH\w{0,20}|HF|TRANSFORMERS|TRITON|N?CCL|AITER|FLASHINFER|HSA|HIP|ROCM|GLOO|UCX)_[A-Z0-9_]{2,60})="
    r"[\"']?([\w.:-]{1,80})"
)
_OF_PARTS: Final = {name for part in PARTS for name in part.settings}
_SETTINGS: Final = "|".join(sorted(name for name in _OF_PARTS if "_" in name and not name.isupper()))
_NAMES: Final = re.compile(
    r"(--[a-z][\w-]{1,60}|\b(?!VLLM_COMPILE\b)(?:VLLM|NCCL|HF|CUDA|PYTORCH|TORCH)_[A-Z0-9_]{2,60})"
    rf"|\b({_SETTINGS}|max_(?:num|model)_\w{{2,40}}|\w{{2,20}}_parallel_size|gpu_memory_utilization|cudagraph_mode)\b"
)
_CHOICES: Final = ("mode", "format", "backend", "parser", "dtype", "quantization", "runner", "task", "executor")
"""Endings of the names of arguments whose values an exception may name instead of them."""
_WANTS: Final = re.compile(r"\b(?:requires?|needs?|must|should|without|only|enable|please|used with)\b")
"""Matches words after which a message names what it wants, not what it refuses."""
_WANTED: Final = re.compile(r".{0,30}\b(?:must|should|needs|required|has to)\b")
"""Matches what follows a setting that a message wants."""
_UNSET: Final = ("", "0", "none", "false", "auto", "[]", "{}")
_MOST_SETTINGS: Final = 300
_MOST_NAMED: Final = 2


class LogSettings:
    """The settings that the lines of one run show: arguments, flags and variables of vLLM."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def read(self, line: LogLine) -> None:
        """Takes a line. Only commands and vLLM's lines of arguments count. Messages name flags, too."""
        text = line.text
        if _CONFIGURATION in text:
            arguments = _ARGUMENT.findall(text)
            found = [(name, value) for name, value in arguments if name in _CHOSEN and value != "None"]
        elif line.level not in ("", "INFO"):
            return
        elif begin := next((part for part in _ARGUMENTS if part in text), ""):
            written = text.partition(begin)[2].removeprefix("{")
            found = _ARGUMENT.findall(_without_inner_values(written))
        elif not line.level and ("--" in text or "=" in text) and _COMMAND.match(text):
            found = [(name.replace("-", "_"), value or "true") for name, value in _FLAG.findall(text)]
            found += _VARIABLE.findall(text)
        else:
            return
        for name, value in found:
            if len(self._values) < _MOST_SETTINGS:
                self._values[name] = value.strip("'\"<>:") or ("…" if "'" not in value else "")

    @property
    def is_empty(self) -> bool:
        """Whether the log shows no settings at all, for example because it is cut."""
        return not self._values

    def value(self, name: str) -> str:
        """The value of a setting. Empty if it is unknown."""
        return self._values.get(name, "")

    def part_of(self, files: Sequence[str]) -> Part | None:
        """The part of vLLM with the innermost of the files that belongs to a part which is turned on."""
        parts = (part for file in reversed(files) for part in parts_of(file))
        for part in parts:
            if any(self._set(name) for name in part.settings):
                return part
        return None

    def blamed(self, files: Sequence[str], text: str, shown: Part | None, message: str) -> list[str]:
        """The set flags and variables that a failure may depend on, the likeliest first.

        Args:
            files: the files of the traceback, outermost first.
            text: the exception and the line that raised it. They may name a setting.
            shown: the part that they name.
            message: the exception's message, which may name a setting's value, or ask for a setting.
        """
        words, reported = _as_one_word(text), _as_one_word(message)
        named = (name for name, value in self._values.items() if _is_named(name, value.lower(), words, reported))
        below = (name for file in reversed(files) for part in parts_of(file) for name in part.settings)
        names = (*named, *(shown.settings if shown else ()), *below)
        set_names = dict.fromkeys(each for name in names for each in self._set(name))
        found = [name for name in set_names if not _asks_for(message, name)]
        return [shown_setting(name) for name in found[:_MOST_NAMED]]

    def names(self) -> frozenset[str] | None:
        """The settings that this log turns on, as flags and variables. None if it shows no settings."""
        if self.is_empty:
            return None
        return frozenset(shown_setting(name) for name in self._values if self._set(name))

    def given(self) -> frozenset[str]:
        """The settings as advice would write them."""
        flags = {shown_setting(name): value for name, value in self._values.items() if value}
        pairs = {f"{name}={value}" if name.isupper() else f"{name} {value}" for name, value in flags.items()}
        turned_on = {name for name, value in flags.items() if value.lower() == "true"}
        return frozenset(pairs | turned_on)

    def _set(self, name: str) -> list[str]:
        """The set settings with this name, or the set variables whose names begin with it."""
        names = [name]
        if name.isupper():
            names = [each for each in self._values if each.startswith(name)]
        found = []
        for each in names:
            value = self._values.get(each, "").lower().rpartition(".")[2]
            if value not in _UNSET:
                found.append(each)
        return found


def _without_inner_values(text: str) -> str:
    """A line of arguments without the members of their values, which may have the names of arguments."""
    for _ in range(_DEEPEST_VALUE):
        text = _INNER_VALUES.sub("", text)
    return text


def names_in(text: str) -> list[str]:
    """The flags, variables of vLLM and arguments that a message names, as flags and variables."""
    matches = _NAMES.findall(text)
    found = dict.fromkeys(shown or argument.replace("_", "-") for shown, argument in matches)
    return [name if name[0] == "-" or name.isupper() else f"--{name}" for name in found]


def _as_one_word(text: str) -> str:
    return text.lower().replace("-", "_").replace(" ", "_")


def _is_named(name: str, value: str, words: str, message: str) -> bool:
    """Whether an exception's text names the setting, or its message names its value and what it is of."""
    is_word = "_" in name and name in words and not value[:1].isdigit()
    is_choice = name.endswith(_CHOICES) and len(value) > 2
    if is_word or not is_choice:
        return is_word
    is_named = "_" not in name or any(word in message for word in name.removesuffix("_mode").split("_"))
    return is_named and find_word(message, value, is_whole=len(value) < 5) >= 0


def _asks_for(message: str, name: str) -> bool:
    """Whether a message says that the setting is needed."""
    words = message.lower().replace("-", "_").replace("__", "")
    before, found, after = words.partition(name.lower())
    return bool(found) and bool(_WANTS.search(before[-60:]) or _WANTED.match(after))


def part_shown(files: Sequence[str], text: str, *, is_unclear: bool) -> Part | None:
    """The part that the text names, or else, if `is_unclear`, the nameless part with the innermost file."""
    words = text.lower()
    found = {word for part in PARTS for word in part.words if word in words}
    before = {word: words[: words.find(word)][-60:] for word in found}
    wanted = {word for word, text in before.items() if _WANTS.search(text)}
    for part in PARTS:
        if found & {*part.words} - wanted:
            return part
    innermost = parts_of("".join(files[-1:])) if is_unclear else []
    return next((part for part in innermost if not part.known), None)


def part_called(files: Sequence[str], text: str) -> KnownCause | None:
    """The cause of the part of vLLM whose file is innermost, apart from files of libraries and wrappers.

    Code refuses a configuration only with an exception whose type does not show a fault of the code itself.
    """
    inner = [file for file in reversed(files) if not is_wrapper(file)]
    own = next(filter(is_of_vllm, inner), "")
    found = (part.known for file in (own, *inner[:1]) for part in parts_of(file))
    may_refuse = inner[:1] == [own] and not text.startswith(tuple(LISTS["faults of code"]))  # no library refuses
    return next((known for known in found if known and (may_refuse or known.name != "configuration-refused")), None)


def shown_setting(name: str) -> str:
    """A setting as its flag, or a variable."""
    return name if name.isupper() else f"--{name.replace('_', '-')}"
