"""Recognizes the known cause of an exception or a line, and the first step of the advice for this log."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Final

from startup.reports.causes.cause import Cause, KnownCause, Step, find_word
from startup.reports.causes.evidence import Evidence
from startup.reports.causes.failures import Failure, Raised, package_of
from startup.reports.causes.log_settings import names_in, part_called, part_shown
from startup.reports.causes.phase import KV_CACHE, SERVING, phase_of_functions
from startup.reports.causes.table import (
    BY_NAME,
    ERROR_IN_CODE,
    FAILED_PARTS,
    KNOWN,
    LISTS,
    OWN_FAULT,
    PLUGIN_FAILED,
    SETTING_REFUSED,
    STEPS,
    is_of_plugin,
    is_of_vllm,
    is_wrapper,
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

_WHOLE: Final = re.compile(r"(\d{1,9})\)? (?:must be|is not) divisible by (?:[a-z_ ]{0,60}\(?)(\d{1,6})")
"""Matches a number that the tensor parallel size must divide, such as that of heads, and this size."""
_BLOCKS: Final = re.compile(r"= ?(\d{1,9}) is not divisible by .{0,60}?= ?(\d{1,6})")
"""Matches the size of one GPU's part of a weight, and that of the blocks that must divide it."""
_LARGEST_SIZE: Final = 1_024
_USUAL_SIZES: Final = (1, 2, 4, 8, 16)
_NAMED: Final = re.compile(r"(?:from|module|No module named) '([A-Za-z]\w{1,60})")
"""Matches the package in a message about a missing name."""
_LONGEST_STEP: Final = 300
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
    if hint and (known is None or known.is_general):
        raised, known = Raised(hint.text), hint.known
    if known and known.phase == KV_CACHE and _is_beside(failure.process, run.engine):
        known = BY_NAME["kv-cache-beside-another"]
    broken = run.broken_import_of(raised.text, known) if known and known.name in _OF_MISSING_LIBRARIES else None
    if broken is not None:
        return _with_context(broken._replace(process=process, phase=failure.phase), run, (), broken.text)
    cause = Cause(process, _phase_of(failure, known), quote(raised, known), known, failure.line)
    cause = cause._replace(is_of_library_import=failure.is_of_library_import, origin=raised.package, place=raised.spot)
    words = f"{raised.text}\n{raised.place} {raised.source}"
    files = [file for file in raised.files or failure.raised[-1].files if not is_of_plugin(file)]
    return _with_context(cause, run, files, words)


def describe_line(found: Cause, run: Evidence) -> Cause:
    """The cause that a line outside of exceptions shows, with what the rest of the log says."""
    phase = (found.known and found.known.phase) or found.phase
    cause, files = found._replace(phase=phase, text=shorten(found.text)), run.stack[::-1]
    if found.known is None:
        return cause._replace(first_step=first_step_of(None, found.text, files, phase, run))
    return _with_context(cause, run, files, found.text)


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
            if known := _known(raised, run, is_general=is_general):
                is_call = raised.package in ("", "vllm") and any(map(is_of_vllm, raised.spots))
                if known is _VERSIONS and is_call and _CALL.match(raised.text):
                    known = part_called(raised.files, raised.text) or ERROR_IN_CODE
                return raised, known
    return chain[0], _last_resort(chain[0], failure)


def _with_context(cause: Cause, run: Evidence, files: Sequence[str], words: str) -> Cause:
    """Adds what the rest of the log says: the part of vLLM, the settings in question, the model's class.

    `words` is the exception and the line that raised it.
    """
    known, tags = cause.known, cause.known.tags if cause.known else frozenset()
    shown = f"{cause.text}\n{words}"
    if known and not known.is_general and not tags & {"part", "settings"}:
        return cause._replace(first_step=first_step_of(known, shown, files, cause.phase, run))
    is_unclear = known in (None, ERROR_IN_CODE)
    if is_unclear or known in FAILED_PARTS or "part" in tags:
        if "no class" in run.facts and any("/transformers" in file for file in files):
            return cause._replace(known=BY_NAME["model-class-missing"])
        part = run.settings.part_of(files)
        known = (part and part.known) or (is_unclear and part_called(files, cause.text)) or known
    step = first_step_of(known, shown, files, cause.phase, run)
    part = part_shown(files, words, is_unclear=is_unclear)
    if part and part.known and is_unclear and run.settings.is_empty:
        known = part.known
    settings = tuple(run.settings.blamed(files, words, part, message=cause.text))
    return cause._replace(known=known, settings=settings, first_step=step)


def _known(raised: Raised, run: Evidence, *, is_general: bool) -> KnownCause | None:
    """The known cause whose texts match the exception's text, alone or with the place that raised it."""
    spots = raised.spots
    causes = [known for known in _OF_EXCEPTIONS if known.is_general == is_general and known.fits_place(spots)]
    causes = [known for known in causes if run.allows(known)]
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
    return part_called(raised.files, text) or (ERROR_IN_CODE if is_of_code else None)


def _is_import_of_another(raised: Raised, functions: Sequence[str]) -> bool:
    """Whether a package raised an exception because another one, which was being imported, called it."""
    frames = zip(raised.files, functions, strict=False)
    importing = {package_of(file) for file, name in frames if name == "<module>"}
    return raised.package != "" and bool(importing - {"", raised.package})


def _is_refusal(text: str) -> bool:
    """Whether an exception recommends or refuses a setting. This says more than the place that raised it."""
    name, words = text.partition(":")[0], text.lower()
    is_instructed = instruction_in(text) and (names_in(text) or name in LISTS["checks"])
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


def first_step_of(known: KnownCause | None, text: str, files: Sequence[str], phase: str, run: Evidence) -> str:
    """The first step for this cause and the line or exception that shows it. Empty if there is none.

    `files` are the files of the traceback, outermost first.
    """
    name, tags = (known.name, known.tags) if known else ("unknown", frozenset())
    fitting = _fitting_size(text, run.settings.value("tensor_parallel_size")) if name == "not-divisible" else ""
    if step := fitting or (instruction_in(text) if known is None or "quoted" in tags else ""):
        return step
    held = {"place", name, *tags, *run.facts, run.platform, _verb(phase)}
    lists = [(known.steps if known else (), [text]), *_steps_for(held, text, files)]
    pairs = ((each, place) for steps, places in lists for place in places for each in steps)
    for each, place in pairs:
        is_in_advice = known is not None and each.do.strip(".").removeprefix("Set ") in known.advice
        if not is_in_advice and _names(place, each.words):
            return each.do
    if name == "versions-do-not-fit":
        return _both_packages(text, files)
    return ""


def _verb(phase: str) -> str:
    return phase.removeprefix("while it ").partition(" ")[0]


def _steps_for(held: set[str], text: str, files: Sequence[str]) -> Iterator[tuple[Sequence[Step], list[str]]]:
    """The steps whose conditions hold, and the texts that must have one of their words."""
    for each in STEPS:
        if all(held & conditions for conditions in each.of):
            is_of_place = any("place" in conditions for conditions in each.of)
            places = reversed(files) if is_of_place else ()
            yield each.steps, [text, text.lower(), *places]


def _names(text: str, words: Sequence[str]) -> bool:
    return not words or any(find_word(text, word, is_whole=True) >= 0 for word in words)


def instruction_in(text: str) -> str:
    """The message's own instruction. Empty if the message only says how to report or trace the error."""
    for sentence in _SENTENCE.split(text[:2_000]):
        words = sentence.lower().removeprefix("you can ")
        is_instructed = words.partition(" ")[0] in LISTS["instructions"]
        is_whole = not sentence.rstrip(" .").endswith(":")
        if is_instructed and is_whole and not any(each in words for each in LISTS["instructions without a remedy"]):
            said = " ".join(sentence.strip(" .)").split())[:_LONGEST_STEP]
            return f"{said[0].upper()}{said[1:]}."
    return ""


def _both_packages(text: str, files: Sequence[str]) -> str:
    """Names two packages that do not fit. The message may say which one lacks what the other needs."""
    inner = [file for file in files if not is_wrapper(file)]
    packages = [package.removesuffix(".py") for file in inner if (package := package_of(file))]
    named = _NAMED.search(text)
    package = named[1] if named else "".join(packages[-1:])
    caller = next((each for each in reversed(packages) if each != package), "")
    if named and inner and "/transformers_modules/" in inner[-1]:
        return f"The model's own code does not fit the installed {package}, so install the one that its page names."
    if caller and named:
        return f"{caller} does not fit the installed {package}, so install the {package} that it requires."
    both = " and ".join(sorted(filter(None, (package, caller))))
    return f"Install releases of {both} that belong together." if caller else ""


def _fitting_size(text: str, set_size: str) -> str:
    """Advice with the largest tensor parallel size below the refused one. Empty if it is unknown."""
    whole, size = _WHOLE.search(text), 0
    if whole:
        total, block, size = int(whole[1]), 1, int(whole[2])
    elif found := _BLOCKS.search(text):
        size = int(set_size) if set_size.isdecimal() else 0
        total, block = int(found[1]) * size, int(found[2])
    sizes = range(min(size, _LARGEST_SIZE) - 1, 0, -1)
    usual = [n for n in sizes if size % n == 0 or (whole and n in _USUAL_SIZES)]  # other layers divide by these
    fitting = next((n for n in usual if total % (n * block) == 0), 0)
    others = f" --pipeline-parallel-size {size // fitting}" if fitting and size % fitting == 0 else ""
    return f"Set --tensor-parallel-size {fitting}{others}." if fitting else ""
