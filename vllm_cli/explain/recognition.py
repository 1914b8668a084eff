"""Recognizes the known cause of an exception or a line."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from startup.reports.crash.phases import SERVING, phase_of_functions
from vllm_cli.explain.cause import Cause, KnownCause
from vllm_cli.explain.evidence import Evidence
from vllm_cli.explain.failures import Failure, Raised, package_of
from vllm_cli.explain.phase import KV_CACHE
from vllm_cli.explain.table import (
    BY_NAME,
    ERROR_IN_CODE,
    KNOWN,
    LISTS,
    OWN_FAULT,
    PLUGIN_FAILED,
    SETTING_REFUSED,
    is_of_plugin,
    is_of_vllm,
    is_wrapper,
    parts_of,
    without_guesses,
)

OF_WORKER: Final = "Worker failed with error"
"""The beginning of the engine core's message that quotes the error of a worker after its start."""
QUOTED: Final = re.compile(rf"{OF_WORKER} '(.{{1,600}}?)(?:', please check the stack trace|$)", re.DOTALL)
_TYPE: Final = re.compile(r" \[type=\w{0,60}(?:, (input_value=(?:[-.\d]{1,20}|None|True|False)), input_type=\w+\])?.*")
"""Matches what pydantic adds after a message. A text may be a secret, so only other values are shown."""
_POINTER: Final = "Search for `"
"""The beginning of torch's line that refers to documentation."""
_OTHER: Final = re.compile(r".*Warning: |[$#>] |.{0,80}\w@[\w.-]{1,60}[: ].{0,80}[$#]")
_LONGEST_QUOTE: Final = 1_000
_VERSIONS: Final = BY_NAME["versions-do-not-fit"]
_CALL: Final = re.compile(r"TypeError: (?!\w*(?:Config|Processor|Tokenizer))")
"""Matches a refused call, unless one of classes that transformers may have."""
INNER: Final = ("worker", "engine core")
EARLIER: Final = "an earlier run"
"""The engine of an earlier run, which still serves."""
_OF_MISSING_LIBRARIES: Final = (
    "libraries-do-not-fit",
    "operator-not-in-build",
    "vllm-not-built",
    "no-device",
    "no-platform",
)
"""Causes that may follow from a module that was not imported, whose warning has the reason."""
_OF_EXCEPTIONS: Final = tuple(known for known in KNOWN if known is not ERROR_IN_CODE)
_NAMES: Final = re.compile(
    r"(--[a-z][\w-]{1,60}|\b(?!VLLM_COMPILE\b)(?:VLLM|NCCL|HF|CUDA|PYTORCH|TORCH)_[A-Z0-9_]{2,60})"
    rf"|\b({'|'.join(LISTS['arguments'])}|max_(?:num|model)_\w{{2,40}}|\w{{2,20}}_parallel_size)\b"
)
_SENTENCE: Final = re.compile(
    r"(?<=[.;!:])\s+(?=[A-Z`'\"])|(?<=[.!])(?=Please )|\n|[,;(] (?:or |so )?(?=(?:please|try|consider|use|set) )"
)
"""Matches between the sentences of a message, and before a clause that may be an instruction."""


def describe(failure: Failure, run: Evidence) -> Cause:
    """The cause of an exception: that of the most informative exception in its chain."""
    process = failure.process or failure.role
    if failure.own_fault is not None:
        text = quote(failure.own_fault, OWN_FAULT)
        return Cause(process, _phase_of(failure, OWN_FAULT), text, OWN_FAULT, failure.line)
    raised, known = _recognize(failure, run)
    hint = next(iter(run.of_kind("hint")), None)
    if hint and (known is None or known.is_general or "weak" in known.tags):
        raised, known = Raised(hint.text), hint.known
    if known and known.phase == KV_CACHE and _is_beside(failure.process, run.engine):
        known = BY_NAME["kv-cache-beside-another"]
    broken = run.broken_import_of(raised.text, known) if known and known.name in _OF_MISSING_LIBRARIES else None
    if broken is not None:
        return broken._replace(process=process, phase=failure.phase, text=shorten(broken.text))
    cause = Cause(process, _phase_of(failure, known), quote(raised, known), known, failure.line)
    return cause._replace(is_of_library_import=failure.is_of_library_import, origin=raised.package, place=raised.spot)


def describe_line(found: Cause) -> Cause:
    """The cause that a line outside of exceptions shows."""
    phase = (found.known and found.known.phase) or found.phase
    return found._replace(phase=phase, text=shorten(found.text))


def _is_beside(process: str, engine: str) -> bool:
    """Whether the process belongs to another engine than `engine`, not to another data parallel rank."""
    names = [label.partition(" pid=")[0] for label in (process, engine)]
    return engine == EARLIER or (engine not in ("", process) and names[0] == names[1])


def _phase_of(failure: Failure, known: KnownCause | None) -> str:
    return (known and known.phase) or phase_of_functions(failure.functions) or failure.phase


def _recognize(failure: Failure, run: Evidence) -> tuple[Raised, KnownCause | None]:
    """The most informative exception of the chain, and its cause."""
    chain = [each for raised in failure.informative() for each in _inner_first(raised)]
    for is_general in (False, True):
        for raised in chain:
            if known := _known(raised, is_general=is_general):
                is_call = raised.package in ("", "vllm") and any(map(is_of_vllm, raised.spots))
                if known is _VERSIONS and is_call and _CALL.match(raised.text):
                    known = _part_called(raised.files, raised.text) or ERROR_IN_CODE
                return raised, known
    return chain[0], _last_resort(chain[0], failure)


def _known(raised: Raised, *, is_general: bool) -> KnownCause | None:
    """The known cause whose texts match the exception's text, alone or with the place that raised it."""
    spots = raised.spots
    causes = [known for known in _OF_EXCEPTIONS if known.is_general == is_general and known.fits_place(spots)]
    if "getattr(" in raised.source:  # the missing name is a value, such as a dtype, and no version has it
        causes = [known for known in causes if known is not _VERSIONS]
    if not spots:  # what depends on the place is only possible
        causes.sort(key=lambda known: bool(known.raised_in))
    shown = without_guesses(raised.text)
    begin, end, rest = shown.partition("\n")
    for text in dict.fromkeys((f"{begin}{raised.place} {raised.source}{end}{rest}", shown)):
        first, flat = text.partition("\n")[0], text.replace("\n", " ")
        joined = text.replace("\n", "")  # if a terminal has wrapped the line
        for known in causes:  # if `where` is "end", the text's first line must match
            forms = (first,) if known.where == "end" else (flat, joined)
            if any(map(known.matches, forms)) or (known.is_of_place and spots):
                return known
    return None


def _last_resort(raised: Raised, failure: Failure) -> KnownCause | None:
    """The cause of an exception that no text matches: versions, a refusal, a part, vLLM's code, or None."""
    text = raised.text
    if _is_import_of_another(raised, failure.functions[-1 - len(raised.files) :]):
        return _VERSIONS
    if is_of_plugin(raised.spot):
        return PLUGIN_FAILED
    if raised.is_of_vllm is not False and _is_refusal(text):
        return SETTING_REFUSED
    phase = phase_of_functions(failure.functions) or failure.phase
    is_labelled = bool(failure.process or failure.place)
    is_below_vllm = any(is_of_vllm(spot) for spot in raised.spots) if raised.spots else is_labelled
    is_of_code = OF_WORKER in text or phase == SERVING or ERROR_IN_CODE.matches(text)
    is_of_code &= raised.package in LISTS["libraries that vLLM calls"]
    is_of_code = raised.is_of_vllm or (is_below_vllm and is_of_code)
    return _part_called(raised.files, text) or (ERROR_IN_CODE if is_of_code else None)


def _part_called(files: Sequence[str], text: str) -> KnownCause | None:
    """The cause of the part of vLLM whose file is innermost, apart from files of libraries and wrappers.

    Code refuses a configuration only with an exception whose type does not show a fault of the code itself.
    """
    inner = [file for file in reversed(files) if not is_wrapper(file)]
    own = next(filter(is_of_vllm, inner), "")
    found = (part.known for file in (own, *inner[:1]) for part in parts_of(file))
    may_refuse = inner[:1] == [own] and not text.startswith(tuple(LISTS["faults of code"]))  # no library refuses
    return next((known for known in found if may_refuse or known.name != "configuration-refused"), None)


def _is_import_of_another(raised: Raised, functions: Sequence[str]) -> bool:
    """Whether a package raised an exception because another one, which was being imported, called it."""
    frames = zip(raised.files, functions, strict=False)
    importing = {package_of(file) for file, name in frames if name == "<module>"}
    return raised.package != "" and bool(importing - {"", raised.package})


def _is_refusal(text: str) -> bool:
    """Whether an exception recommends or refuses a setting. This says more than the place that raised it."""
    name, words = text.partition(":")[0], text.lower()
    is_instructed = _is_instructed(text) and (names_in(text) or name in LISTS["checks"])
    refusals = LISTS["refusals by assertions" if name == "AssertionError" else "refusals"]
    is_refused = any(each in words for each in refusals) and not text.startswith(tuple(LISTS["faults of code"]))
    return bool(is_instructed or is_refused or (name == "ValueError" and names_in(text)))


def _inner_first(raised: Raised) -> list[Raised]:
    """If torch's compiler quotes another exception, puts the more informative quoted exception first."""
    first, _, inner = raised.text.partition("\n")
    return [Raised(inner), raised] if inner and first.endswith("raised:") else [raised]


def quote(raised: Raised, known: KnownCause | None) -> str:
    """The whole message of an exception. If it is too long, it begins with the line that shows the cause."""
    text = raised.text
    if quoted := QUOTED.search(text):
        return shorten(quoted[1])
    lines = [*takewhile(_is_of_message, text.splitlines())] or [text]
    matching = (line for line in reversed(text.splitlines()) if known and known.matches(line))
    line = next((each for each in matching if not each.startswith(_POINTER)), lines[0])
    lines += [line] if line not in lines else []
    if len(lines) == 1 and ": " not in line and raised.function:
        source = f": {raised.source}" if raised.source.startswith("assert ") else ""
        lines = [f"{line.rstrip(':')} in {raised.function}(){source}"]
    elif sum(map(len, lines)) > _LONGEST_QUOTE:
        del lines[: lines.index(line)]
    return shorten("\n".join(lines))


def _is_of_message(line: str) -> bool:
    """Whether a line of an exception's text belongs to its message, not to what programs write after it."""
    if not line or line.startswith(tuple(LISTS["after messages"])):
        return False
    return not _OTHER.match(line)


def shorten(text: str) -> str:
    """The text in one line, without what pydantic adds after the message."""
    text = " ".join(_TYPE.sub(r" \1", text).split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]} …"


def _is_instructed(text: str) -> bool:
    """Whether the message says what to do, and not only how to report or trace the error."""
    for sentence in _SENTENCE.split(text[:2_000]):
        words = sentence.lower().removeprefix("you can ")
        is_whole = not sentence.rstrip(" .").endswith(":")
        is_other = any(each in words for each in LISTS["instructions without a remedy"])
        if words.partition(" ")[0] in LISTS["instructions"] and is_whole and not is_other:
            return True
    return False


def names_in(text: str) -> list[str]:
    """The flags, variables of vLLM and arguments that a message names, as flags and variables."""
    matches = _NAMES.findall(text)
    found = dict.fromkeys(shown or argument.replace("_", "-") for shown, argument in matches)
    return [name if name[0] == "-" or name.isupper() else f"--{name}" for name in found]
