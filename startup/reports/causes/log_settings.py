"""Reads the settings that a log shows, and finds those without which a failure may not occur."""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Final

from startup.reports.causes.known.failed_parts import PARTS, Part
from startup.reports.causes.known_cause import KnownCause

_TENSOR_PARALLEL: Final = "tensor_parallel_size"
_ARGUMENTS: Final = ("non-default args: ", "args: Namespace(")
_CONFIGURATION: Final = " LLM engine (v"
"""vLLM's line with the engine's configuration. Most of its values are not the user's."""
_CHOSEN: Final = ("speculative_config", "kv_cache_dtype", _TENSOR_PARALLEL)
"""Values in that line that are rarely vLLM's own."""
_COMMAND: Final = ("vllm serve", "vllm.entrypoints.", "VLLM_")
_ARGUMENT: Final = re.compile(r"\b([a-z][a-z0-9_]{2,60})'?(?:: |=)('[^']{0,80}'|\[\]|\{\}|[^\s,(){}']{1,80})?")
_FLAG: Final = re.compile(r"(?<!\S)--([a-z][a-z0-9-]{2,60})(?:[= ]([^\s-]\S{0,80}))?")
_VARIABLE: Final = re.compile(r"\b(VLLM_[A-Z0-9_]{2,60})=[\"']?(\w{1,80})")
_WHOLE: Final = re.compile(r"(\d{1,9})\)? (?:must be|is not) divisible by (?:[a-z_ ]{0,60}\(?)(\d{1,6})")
"""Matches a number that the tensor parallel size must divide, such as that of heads, and this size."""
_BLOCKS: Final = re.compile(r"= ?(\d{1,9}) is not divisible by .{0,60}?= ?(\d{1,6})")
"""Matches the size of one GPU's part of a weight, and that of the blocks that must divide it."""
_LARGEST_SIZE: Final = 1_024
_CHOICES: Final = ("mode", "format", "backend", "parser", "dtype", "quantization", "runner", "task", "executor")
"""Endings of the names of arguments whose values an exception may name instead of them."""
_WRAPPERS: Final = ("/_custom_ops.py", "/_aiter_ops.py", "/custom_op.py", "/vllm/utils.py")
"""Files of vLLM that call kernels for all its parts."""
_UNSET: Final = ("", "0", "none", "false", "auto", "[]", "{}")
_MOST_SETTINGS: Final = 300
_MOST_NAMED: Final = 2
_NUM_OPTIONAL: Final = 4
"""The number of parts at the beginning of `PARTS` without which vLLM often serves the same model."""


class LogSettings:
    """The settings that the lines of one run show: arguments, flags and variables of vLLM."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def read(self, text: str) -> None:
        """Takes a line without its prefixes."""
        if any(part in text for part in _ARGUMENTS):
            found = _ARGUMENT.findall(text)
        elif _CONFIGURATION in text:
            found = [each for each in _ARGUMENT.findall(text) if each[0] in _CHOSEN]
        elif text.lstrip(" \t$#").startswith("--") or any(part in text for part in _COMMAND):
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

    def part_of(self, files: Sequence[str]) -> Part | None:
        """The part of vLLM with the innermost of the files that belongs to a part which is turned on."""
        parts = (part for file in reversed(files) for part in PARTS if part.has(file))
        return next((part for part in parts if any(self._set(name) for name in part.settings)), None)

    def fitting_size(self, text: str) -> str:
        """Advice with the largest tensor parallel size below the refused one. Empty if it is unknown."""
        whole, size = _WHOLE.search(text), 0
        if whole:
            total, block, size = int(whole[1]), 1, int(whole[2])
        elif found := _BLOCKS.search(text):
            size = int(value) if (value := self._values.get(_TENSOR_PARALLEL, "")).isdecimal() else 0
            total, block = int(found[1]) * size, int(found[2])
        sizes = range(min(size, _LARGEST_SIZE) - 1, 0, -1)
        fitting = next((n for n in sizes if total % (n * block) == 0 and (whole or size % n == 0)), 0)
        if not fitting:
            return ""
        others = f" --pipeline-parallel-size {size // fitting}" if size % fitting == 0 else ""
        return f"Set --tensor-parallel-size {fitting}{others}."

    def blamed(self, files: Sequence[str], text: str, *, is_unclear: bool) -> list[str]:
        """The set flags and variables that a failure may depend on, the likeliest first.

        Args:
            files: the files of the traceback, outermost first.
            text: the exception and the line that raised it. They may name a setting or a part.
            is_unclear: whether nothing else says what failed. Then an optional part may have.
        """
        words = text.lower().replace("-", "_").replace(" ", "_")
        named = (name for name, value in self._values.items() if _is_named(name, value.lower(), words))
        spoken = (name for part in PARTS if any(word in text.lower() for word in part.words) for name in part.settings)
        below = (name for file in reversed(files) for part in PARTS if part.has(file) for name in part.settings)
        all_parts = chain.from_iterable(part.settings for part in PARTS[:_NUM_OPTIONAL] if is_unclear)
        found = dict.fromkeys(each for name in (*named, *spoken, *below, *all_parts) for each in self._set(name))
        return [shown_setting(name) for name in [*found][:_MOST_NAMED]]

    def _set(self, name: str) -> list[str]:
        """The set settings with this name, or the set variables whose names begin with it."""
        names = [each for each in self._values if each.startswith(name)] if name.isupper() else [name]
        return [each for each in names if self._values.get(each, "").lower().rpartition(".")[2] not in _UNSET]


def _is_named(name: str, value: str, words: str) -> bool:
    """Whether an exception's text names the setting, or its value if that is one of few choices."""
    is_word = "_" in name and name in words and not value[:1].isdigit() and name != "trust_remote_code"
    return is_word or (name.endswith(_CHOICES) and len(value) > 2 and value in words)


def part_shown(files: Sequence[str], text: str, *, is_unclear: bool) -> Part | None:
    """The part that the text names, or else, if `is_unclear`, the nameless part with the innermost file."""
    words = text.lower()
    named = next((part for part in PARTS if any(word in words for word in part.words)), None)
    return named or next(
        (part for part in PARTS if is_unclear and not part.known and part.has("".join(files[-1:]))), None
    )


def part_called(files: Sequence[str]) -> KnownCause | None:
    """The cause of the part of vLLM whose file is innermost, apart from files of libraries and wrappers."""
    inner = (file for file in reversed(files) if not file.endswith(_WRAPPERS))
    own = (file for file in inner if "/vllm/" in f"/{file.rpartition('-packages/')[2]}")
    file = next(own, "")
    return next((part.known for part in PARTS if part.has(file)), None)


def shown_setting(name: str) -> str:
    """A setting as its flag, or a variable."""
    return name if name.isupper() else f"--{name.replace('_', '-')}"
