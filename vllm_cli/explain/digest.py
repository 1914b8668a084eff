"""Writes a cause as at most four lines, or as members of a JSON object."""

import re
from typing import Any, Final

from startup.errors import UNKNOWN_CAUSE, code_line
from startup.reports.crash.explanation import shown
from vllm_cli.explain.cause import LLAMA_CPP_NAME, Cause, KnownCause, is_in_range
from vllm_cli.explain.recognition import names_in
from vllm_cli.explain.table import BY_NAME, LISTS, SETTING_REFUSED, SETTINGS

_LABEL: Final = re.compile(r"(.{1,90}?),? pid=(\d{1,12})")
_SENTENCE: Final = re.compile(r"(?<=\.) (?=[A-Z`])")
_PLATFORMS: Final = [KnownCause(name, texts=tuple(texts)) for name, texts in LISTS["platforms"].items()]
POSSIBLY: Final = "possibly "
"""Comes before a cause that depends on the place of the exception, which the log does not tell."""
_PROGRAMS: Final = {"": "vLLM", "vllm": "vLLM", LLAMA_CPP_NAME: LLAMA_CPP_NAME}
"""Origin of an unknown error -> the program whose issues may explain it. Other origins are packages."""
_OF_LLAMA_CPP: Final = ("llama-", "gguf-quantization")
"""Beginnings of the names of llama.cpp's causes."""
_OF_VLLM: Final = re.compile(r"--[a-z]|VLLM_|vLLM")
_LLAMA_CPP_ADVICE: Final = (
    "Try the newest llama.cpp, its build for another backend (Vulkan, CPU), fewer layers on the GPU (-ngl), a smaller "
    "-c, no -fa, and a newer driver."
)
"""Advice that replaces advice with vLLM's flags if llama.cpp has failed."""
_FOREIGN: Final = "Search the issues of the program that wrote this log for the message."
"""Advice that replaces advice about vLLM if no server of vLLM wrote the log."""
_SEARCH: Final = "Search vLLM's issues for the message."
"""Advice if this release of vLLM has none of the settings of other advice."""
_FLAG: Final = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_PART: Final = re.compile(r", (?:or )?")
"""Separates the remedies in a sentence of advice."""
_ONLY_OF_VLLM: Final = frozenset(LISTS["flags that only vLLM has"])
_ROLES: Final[dict[str, str]] = {"": "The server", **LISTS["names of roles"]}
"""Role of a process of vLLM or the embedded engine -> its name in the digest. llama.cpp has no roles."""


def write_digest(cause: Cause) -> list[str]:
    """The lines of the digest. Its advice is left out if the cause is unknown and its text has advice."""
    happened = "was stopped" if cause.is_stop else "waits" if cause.is_waiting else "failed"
    parts = (_name(cause.process), happened, cause.phase)
    first = " ".join(filter(None, parts)) + _place(cause)
    if cause.is_foreign:
        first = f"No line of this log is of a vLLM server. {first.replace('The server', 'The program', 1)}"
    if cause.is_unfinished:
        name = _ROLES.get(cause.process, "").lower() or _name(cause.process)
        first = f"The log ends while {name} {cause.phase.removeprefix('while it ')}"
    if cause.is_reference:
        kind = "names a cause" if cause.known else "is the message of an error"
        first = f"Line {cause.line} {kind}, and no other line of this log shows what failed"
    if cause.known is None:
        programs = shown(_PROGRAMS.get(cause.origin, f"vLLM and {cause.origin}"))
        search = f"Search the issues of {programs} for the message."
        advice = f"{search} Read the log around it (line {cause.line}). Try the newest release."
        advice = _FOREIGN if cause.is_foreign else _for_this_log(advice, cause)
        lines = [f"{first}.", f"Cause: {_text(cause)}", *([f"Do: {advice}"] if cause.line else [])]
    else:
        possibly = POSSIBLY if cause.is_unplaced else ""
        lines = [f"{first}.", f"Cause: {possibly}{cause.known.title}: {_text(cause)}", f"Do: {_advice(cause)}"]
    return [*lines, code_line(cause.known.name if cause.known else UNKNOWN_CAUSE)]


def _place(cause: Cause) -> str:
    """Where the exception of an unknown or general cause was raised, because its message says too little."""
    file, _, function = cause.place.rpartition(" ")
    if not file or not cause.is_weak:
        return ""
    return shown(f", in {function} of {file.rpartition('-packages/')[2]}")


def digest_to_dict(cause: Cause) -> dict[str, Any]:
    """The cause as members of a JSON object. For an unknown cause, `cause`, `title`, `advice` are None."""
    known = cause.known
    return {
        "process": shown(cause.process) or None,
        "phase": cause.phase.removeprefix("while it ") or None,
        "code": (known or BY_NAME[UNKNOWN_CAUSE]).code,
        "cause": known.name if known else None,
        "title": known.title if known else None,
        "certainty": cause.certainty,
        "place": shown(cause.place) or None,
        "text": _text(cause),
        "line": cause.line,
        "advice": _advice(cause) or None,
    }


def _text(cause: Cause) -> str:
    """What the log says: the line that shows the cause, and the first error if that is another line."""
    return shown(f"{cause.text} (the first error is in {cause.first_error})" if cause.first_error else cause.text)


def _advice(cause: Cause) -> str:
    advice = cause.known.advice if cause.known else ""
    if cause.known is SETTING_REFUSED and (named := names_in(shown(cause.text))):
        advice = f"Change {', '.join(named[:3])} as the message says, or try a newer vLLM."
    is_known = cause.known is not None and cause.known.name.startswith(_OF_LLAMA_CPP)
    is_of_llama_cpp = is_known or LLAMA_CPP_NAME in advice
    if cause.origin == LLAMA_CPP_NAME and not is_of_llama_cpp and _OF_VLLM.search(advice):
        return _LLAMA_CPP_ADVICE
    if cause.is_foreign and not is_of_llama_cpp and _OF_VLLM.search(advice):
        return _FOREIGN
    return _for_this_log(advice, cause)


def _for_this_log(advice: str, cause: Cause) -> str:
    """Advice with the settings of this log's release of vLLM and the names of its platform."""
    if cause.version:
        sentences = (_for_version(each, cause.version) for each in _SENTENCE.split(advice))
        advice = " ".join(filter(None, sentences)) or _SEARCH
        advice = advice.replace("a newer vLLM", f"a vLLM newer than {cause.version}")
    named = [each.name for each in _PLATFORMS if each.matches(cause.text)]
    platform = cause.platform or (named[0] if named else "")
    counterparts = LISTS.get(platform, LISTS["cuda"])
    for of_cuda, counterpart in zip(LISTS["cuda"], counterparts, strict=True):
        advice = advice.replace(of_cuda, counterpart)
    return for_embedded_engine(advice) if cause.is_embedded else advice


def _for_version(sentence: str, version: str) -> str:
    """A sentence of advice with the settings of this vLLM. Empty if vLLM has no such setting."""
    for name, (versions, instead) in SETTINGS.items():
        if name in sentence and not is_in_range(version, versions):
            if not instead:
                return ""
            sentence = sentence.replace(f"{name} ", f"{instead}=" if instead.isupper() else f"{instead} ")
            sentence = sentence.replace(name, instead)
    return sentence


def for_embedded_engine(advice: str) -> str:
    """Advice without the remedies whose flags only vLLM has. Empty if there are no others."""
    sentences: list[str] = []
    for sentence in _SENTENCE.split(advice):
        remedies = _PART.split(sentence)
        left = [remedy for remedy in remedies if _ONLY_OF_VLLM.isdisjoint(_FLAG.findall(remedy))]
        if left == remedies:
            sentences.append(sentence)
        elif left:
            *others, text = left
            if others:
                text = f"{', '.join(others)}, or {text}"
            sentences.append(f"{text[0].upper()}{text[1:].rstrip('.')}.")
    return " ".join(sentences)


def _name(process: str) -> str:
    if process in _ROLES:
        return _ROLES[process]
    label = _LABEL.fullmatch(process)
    return shown(f"{label[1]} (pid {label[2]})" if label else process)
