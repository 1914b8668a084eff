"""Writes a cause as at most four lines, or as members of a JSON object."""

import re
from typing import Any, Final

from envs.redaction import hide_in_command
from startup.errors import code_line
from startup.logs.formatters import escape_controls
from startup.reports.causes.first_cause import LLAMA_CPP_NAME, Cause
from startup.reports.causes.known.installation import SETTING_REFUSED
from startup.reports.causes.known.llama_cpp import LLAMA_CPP
from startup.reports.causes.known.own import UNKNOWN
from startup.reports.causes.known.processes import STOPPED

_LABEL: Final = re.compile(r"(.{1,90}?),? pid=(\d{1,12})")
_ROCM: Final = "rocm"
_OF_ROCM: Final = re.compile(r"\bhip|\bHIP\b|ROCm|HSA_|gfx\d")
_ROCM_NAMES: Final = (
    ("nvidia-smi", "rocm-smi"),
    ("CUDA_LAUNCH_BLOCKING=1", "AMD_SERIALIZE_KERNEL=3"),
    ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    ("TORCH_CUDA_ARCH_LIST", "PYTORCH_ROCM_ARCH"),
    ("--gpus all", "--device /dev/kfd --device /dev/dri"),
    ("nvidia.com/gpu", "amd.com/gpu"),
    ("CUDA toolkit", "ROCm"),
)
"""The names of NVIDIA's tools, flags and variables in advice, and of AMD's counterparts."""
_PROGRAMS: Final = {"": "vLLM", "vllm": "vLLM", LLAMA_CPP_NAME: LLAMA_CPP_NAME}
"""Origin of an unknown error -> the program whose issues may explain it. Other origins are packages."""
_OF_VLLM: Final = re.compile(r"--[a-z]|VLLM_|vLLM")
_LLAMA_CPP_ADVICE: Final = (
    "Try the newest llama.cpp, its build for another backend (Vulkan, CPU), fewer layers on the GPU (-ngl), a smaller "
    "-c, no -fa, and a newer driver."
)
"""Advice that replaces advice with vLLM's flags if llama.cpp has failed."""
_NAMES: Final = re.compile(r"--[a-z][\w-]{1,60}|\b[A-Z]{2,20}_[A-Z0-9_]{2,60}|\b[a-z]{2,30}_[a-z0-9_]{2,60}(?==| \()")
"""Matches the name of a flag, of an environment variable, or of a Python option that has a value."""
_ROLES: Final = {
    "worker": "A worker",
    "engine core": "The engine core",
    "API server": "The API server",
    "engine": "The engine",
    "API process": "The API process",
    "": "The server",
}
"""Role of a process of vLLM or the embedded engine -> its name in the digest. llama.cpp has no roles."""


def write_digest(cause: Cause) -> list[str]:
    """The lines of the digest. Its advice is left out if the cause is unknown and its text has advice."""
    happened = "was stopped" if cause.known is STOPPED else "waits" if cause.is_waiting else "failed"
    first = " ".join(part for part in (_name(cause.process), happened, cause.phase) if part)
    if cause.is_mention:
        kind = "names a cause" if cause.known else "is the message of an error"
        first = f"Line {cause.line} {kind}, and no other line of this log shows what failed"
    if cause.known is None:
        programs = shown(_PROGRAMS.get(cause.origin, f"vLLM and {cause.origin}"))
        search = f"Search the issues of {programs} for the message."
        advice = f"{search} Read the log around it (line {cause.line}). Try the newest release."
        advice = _for_this_log(advice, cause)
        lines = [f"{first}.", f"Cause: {shown(cause.text)}", *([f"Do: {advice}"] if cause.line else [])]
    else:
        lines = [f"{first}.", f"Cause: {cause.known.title}: {shown(cause.text)}", f"Do: {_advice(cause)}"]
    return [*lines, code_line((cause.known or UNKNOWN).name)]


def digest_to_dict(cause: Cause) -> dict[str, Any]:
    """The cause as members of a JSON object. For an unknown cause, `cause`, `title`, `advice` are None."""
    known = cause.known
    return {
        "process": shown(cause.process) or None,
        "phase": cause.phase.removeprefix("while it ") or None,
        "code": (known or UNKNOWN).code,
        "cause": known.name if known else None,
        "title": known.title if known else None,
        "text": shown(cause.text),
        "line": cause.line,
        "advice": _advice(cause) or None,
    }


def _advice(cause: Cause) -> str:
    advice = cause.known.advice if cause.known else ""
    if cause.known is SETTING_REFUSED and (named := dict.fromkeys(_NAMES.findall(shown(cause.text)))):
        advice = f"Change {', '.join([*named][:3])} as the message says, or try a newer vLLM."
    is_of_llama_cpp = cause.known in LLAMA_CPP or LLAMA_CPP_NAME in advice
    if cause.origin == LLAMA_CPP_NAME and not is_of_llama_cpp and _OF_VLLM.search(advice):
        return _LLAMA_CPP_ADVICE
    return _for_this_log(advice, cause)


def _for_this_log(advice: str, cause: Cause) -> str:
    """Advice with this log's settings and the names of its platform."""
    for name in cause.settings:
        advice = advice.replace(name, f"{name} (it is set)", 1)
    if others := [name for name in cause.settings if f"{name} (" not in advice]:
        advice = f"Leave out {' or '.join(others)} (set in this log). {advice}"
    advice = f"{cause.first_step} {advice}".lstrip()
    if cause.version:
        advice = advice.replace("a newer vLLM", f"a vLLM newer than {cause.version}")
    if cause.platform == _ROCM or (not cause.platform and _OF_ROCM.search(cause.text)):
        for of_cuda, of_rocm in _ROCM_NAMES:
            advice = advice.replace(of_cuda, of_rocm)
    return advice


def shown(text: str) -> str:
    """A text of a log without secrets and control characters."""
    return escape_controls(hide_in_command(text))


def _name(process: str) -> str:
    if process in _ROLES:
        return _ROLES[process]
    label = _LABEL.fullmatch(process)
    return shown(f"{label[1]} (pid {label[2]})" if label else process)
