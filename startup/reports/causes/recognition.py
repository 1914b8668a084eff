"""Recognizes the known cause of an exception by its text, its place and the settings of the log."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from startup.reports.causes.cause import OF_WORKER, Cause
from startup.reports.causes.evidence import Evidence
from startup.reports.causes.failures import Failure, Raised, package_of
from startup.reports.causes.first_steps import first_step_of, instruction_in
from startup.reports.causes.known_cause import KnownCause
from startup.reports.causes.log_settings import names_in, part_called, part_shown, shown_setting
from startup.reports.causes.phase import SERVING, phase_of_functions
from startup.reports.causes.table import BY_NAME, ERROR_IN_CODE, FAILED_PARTS, KNOWN, LISTS, SETTING_REFUSED

_OF_EXCEPTIONS: Final = tuple(
    known for known in KNOWN if known is not ERROR_IN_CODE and not (known.is_general and known.where == "wait")
)


class Recognized(NamedTuple):
    """The most informative exception of a chain, and its cause."""

    raised: Raised
    known: KnownCause | None
    is_special: bool
    """Whether no line outside of the exception says more."""


def recognize(failure: Failure, run: Evidence) -> Recognized:
    """The most informative exception of the chain, its cause, and whether this cause is special."""
    chain = [each for raised in failure.informative() for each in _inner_first(raised)]
    for raised in chain:
        if known := _known(raised, is_general=False):
            return Recognized(raised, known, True)
    for raised in chain:
        if known := _known(raised, is_general=True):
            of_place = known in FAILED_PARTS or known.name == "configuration-refused"
            if of_place and not known.matches(raised.text):  # the place shows the part
                known = SETTING_REFUSED if _is_refusal(raised.text) else part_called(raised.files) or known
            return Recognized(raised, known, False)
    return Recognized(chain[0], _last_resort(chain[0], failure), False)


def with_context(cause: Cause, run: Evidence, files: Sequence[str], words: str, *, is_inner: bool) -> Cause:
    """Adds what the rest of the log says: the part of vLLM, the settings in question, the model's class.

    `words` is the exception and the line that raised it.
    """
    known, tags = cause.known, cause.known.tags if cause.known else frozenset()
    shown = f"{cause.text}\n{words}"
    step = first_step_of(known, shown, files, cause.phase, run)
    switches = run.settings.switches(shown, is_of_kernel="kernel" in tags)[:2]
    if known and not known.is_general and not tags & {"part", "settings"}:
        return replace(cause, first_step=step, settings=tuple(switches))
    is_unclear = known in (None, ERROR_IN_CODE)
    if is_unclear or known in FAILED_PARTS or "part" in tags:
        part = run.settings.part_of(files)
        known = (part and part.known) or (is_unclear and part_called(files)) or known
        if "no class" in run.facts and part is None:
            return replace(cause, known=BY_NAME["model-class-missing"])
    step = step or first_step_of(known, shown, files, cause.phase, run)
    part = part_shown(files, words, is_unclear=is_unclear)
    if part and (run.settings.is_empty or part.settings[0].isupper()):
        known = part.known if part.known and (is_unclear or known in FAILED_PARTS) else known
        flag = shown_setting(part.settings[0])
        is_told = (known is not None and known is part.known) or flag in cause.text
        step = step or ("" if is_told else f"Set {flag}=0." if flag.isupper() else f"Leave out {flag} if it is set.")
    is_unclear = (is_inner and known in (None, ERROR_IN_CODE)) or (known is cause.known and "weak" in tags)
    settings = run.settings.blamed(files, words, part, is_unclear=is_unclear)
    settings = [*dict.fromkeys((*switches, *settings))]
    return replace(cause, known=known, settings=tuple(settings[:2]), first_step=step)


def _known(raised: Raised, *, is_general: bool) -> KnownCause | None:
    """The known cause whose texts match the exception's text, alone or with the place that raised it."""
    causes = [known for known in _OF_EXCEPTIONS if known.is_general == is_general]
    for text in dict.fromkeys((f"{raised.text}{raised.place} {raised.source}", raised.text)):
        first, flat = text.partition("\n")[0], text.replace("\n", " ")
        joined = text.replace("\n", "")  # if a terminal has wrapped the line
        for known in causes:  # if `where` is "end", the text's first line must match
            if known.matches(first) if known.where == "end" else known.matches(flat) or known.matches(joined):
                return known
    return None


def _last_resort(raised: Raised, failure: Failure) -> KnownCause | None:
    """The cause of an exception that matches no other: a refused setting, vLLM's code, or None."""
    text = raised.text
    if _is_refusal(text):
        return SETTING_REFUSED
    if _is_import_of_another(raised, failure.functions[-1 - len(raised.files) :]):
        return BY_NAME["versions-do-not-fit"]
    phase = phase_of_functions(failure.functions) or failure.phase
    is_of_code = OF_WORKER in text or SERVING in (phase, failure.phase) or ERROR_IN_CODE.matches(text)
    return ERROR_IN_CODE if is_of_code else None


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
