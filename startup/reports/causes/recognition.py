"""Recognizes the known cause of an exception by its text, its place and the settings of the log."""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from startup.reports.causes.cause import Cause, KnownCause
from startup.reports.causes.evidence import Evidence
from startup.reports.causes.failures import Failure, Raised, package_of
from startup.reports.causes.first_steps import first_step_of, instruction_in
from startup.reports.causes.log_settings import names_in, part_called, part_shown, shown_setting
from startup.reports.causes.phase import KV_CACHE, SERVING, phase_of_functions
from startup.reports.causes.table import BY_NAME, ERROR_IN_CODE, FAILED_PARTS, KNOWN, LISTS, OWN_FAULT, SETTING_REFUSED

OF_WORKER: Final = "Worker failed with error"
"""The beginning of the engine core's message that quotes the error of a worker after its start."""
QUOTED: Final = re.compile(rf"{OF_WORKER} '(.{{1,600}})', please check the stack trace", re.DOTALL)
_TYPE: Final = re.compile(r" \[type=\w{0,60}(?:, (input_value=(?:[-.\d]{1,20}|None|True|False)), input_type=\w+\])?.*")
"""Matches what pydantic adds after a message. A text may be a secret, so only other values are shown."""
_POINTER: Final = "Search for `"
"""The beginning of torch's line that refers to documentation."""
_OTHER: Final = re.compile(r".*Warning: |[$#>] |.{0,80}\w@[\w.-]{1,60}[: ].{0,80}[$#]")
_LONGEST_QUOTE: Final = 1_000
_VERSIONS: Final = BY_NAME["versions-do-not-fit"]
_CALL: Final = re.compile(r"TypeError: (?!\w*(?:Config|Processor|Tokenizer))")
"""Matches a refused call, unless one of classes that transformers may have."""
_OTHER_PLATFORMS: Final = ("rocm", "xpu", "cpu", "ascend", "npu", "tpu", "hpu")
INNER: Final = ("worker", "engine core")
EARLIER: Final = "an earlier run"
"""The engine of an earlier run, which still serves."""
_OF_EXCEPTIONS: Final = tuple(
    known for known in KNOWN if known is not ERROR_IN_CODE and not (known.is_general and known.where == "wait")
)


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
    phase, text = _phase_of(failure, known), quote(raised, known)
    is_of_import = failure.is_of_library_import
    cause = Cause(process, phase, text, known, failure.line, is_of_library_import=is_of_import, origin=raised.package)
    words = f"{raised.text}\n{raised.place} {raised.source}"
    return _with_context(cause, run, raised.files or failure.raised[-1].files, words)


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
            if known := _known(raised, run.platform, is_general=is_general):
                part = part_called(raised.files)
                of_part = known in FAILED_PARTS or known.name == "configuration-refused"
                if of_part and not known.matches(raised.text):  # only the place shows the part
                    known = _last_resort(raised, failure, part or known)
                elif known is _VERSIONS and raised.package == "vllm" and _CALL.match(raised.text):
                    known = part or ERROR_IN_CODE
                return raised, known
    return chain[0], _last_resort(chain[0], failure, None)


def _with_context(cause: Cause, run: Evidence, files: Sequence[str], words: str) -> Cause:
    """Adds what the rest of the log says: the part of vLLM, the settings in question, the model's class.

    `words` is the exception and the line that raised it.
    """
    known, tags = cause.known, cause.known.tags if cause.known else frozenset()
    shown = f"{cause.text}\n{words}"
    switches = run.settings.switches(shown, is_of_kernel="kernel" in tags)[:2]
    if known and not known.is_general and not tags & {"part", "settings"}:
        step = first_step_of(known, shown, files, cause.phase, run)
        return cause._replace(first_step=step, settings=tuple(switches))
    is_unclear = known in (None, ERROR_IN_CODE)
    if is_unclear or known in FAILED_PARTS or "part" in tags:
        if "no class" in run.facts:
            return cause._replace(known=BY_NAME["model-class-missing"])
        part = run.settings.part_of(files)
        known = (part and part.known) or (is_unclear and part_called(files)) or known
    step = first_step_of(known, shown, files, cause.phase, run)
    part = part_shown(files, words, is_unclear=is_unclear)
    if part and (run.settings.is_empty or part.settings[0].isupper()):
        known = part.known if part.known and is_unclear else known
        flag = shown_setting(part.settings[0])
        is_told = (known is not None and known is part.known) or flag in cause.text
        step = step or ("" if is_told else f"Set {flag}=0." if flag.isupper() else f"Leave out {flag} if it is set.")
    is_unclear = known in (None, ERROR_IN_CODE)
    settings = dict.fromkeys((*switches, *run.settings.blamed(files, words, part, is_unclear=is_unclear)))
    return cause._replace(known=known, settings=tuple([*settings][:2]), first_step=step)


def _known(raised: Raised, platform: str, *, is_general: bool) -> KnownCause | None:
    """The known cause whose texts match the exception's text, alone or with the place that raised it."""
    others = {"of-cuda"} if platform in _OTHER_PLATFORMS else set()
    causes = [known for known in _OF_EXCEPTIONS if known.is_general == is_general and not known.tags & others]
    begin, end, rest = raised.text.partition("\n")
    for text in dict.fromkeys((f"{begin}{raised.place} {raised.source}{end}{rest}", raised.text)):
        first, flat = text.partition("\n")[0], text.replace("\n", " ")
        joined = text.replace("\n", "")  # if a terminal has wrapped the line
        for known in causes:  # if `where` is "end", the text's first line must match
            if known.matches(first) if known.where == "end" else known.matches(flat) or known.matches(joined):
                return known
    return None


def _last_resort(raised: Raised, failure: Failure, part: KnownCause | None) -> KnownCause | None:
    """The cause of an exception that no text matches: versions, a refusal, a part, vLLM's code, or None."""
    text = raised.text
    if _is_import_of_another(raised, failure.functions[-1 - len(raised.files) :]):
        return _VERSIONS
    if _is_refusal(text):
        return SETTING_REFUSED
    phase = phase_of_functions(failure.functions) or failure.phase
    is_of_code = OF_WORKER in text or phase == SERVING or ERROR_IN_CODE.matches(text)
    return part or (ERROR_IN_CODE if is_of_code else None)


def _is_import_of_another(raised: Raised, functions: Sequence[str]) -> bool:
    """Whether a package raised an exception because another one, which was being imported, called it."""
    importing = {package_of(file) for file, name in zip(raised.files, functions, strict=False) if name == "<module>"}
    return raised.package != "" and bool(importing - {"", raised.package})


def _is_refusal(text: str) -> bool:
    """Whether an exception recommends or refuses a setting. This says more than the place that raised it."""
    name, words = text.partition(":")[0], text.lower()
    is_told = instruction_in(text) and (names_in(text) or name in LISTS["checks"])
    refusals = LISTS["refusals by assertions" if name == "AssertionError" else "refusals"]
    is_refused = any(each in words for each in refusals) and not text.startswith(LISTS["faults of code"])
    return bool(is_told or is_refused or (name == "ValueError" and names_in(text)))


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
    return bool(line) and not line.startswith(LISTS["after messages"]) and not _OTHER.match(line)


def shorten(text: str) -> str:
    """The text in one line, without what pydantic adds after the message."""
    text = " ".join(_TYPE.sub(r" \1", text).split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]} …"
