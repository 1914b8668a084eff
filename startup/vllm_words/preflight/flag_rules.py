"""What flags of `vllm serve` ask of each other, as vLLM checks it before it loads anything."""

from collections.abc import Iterator
from typing import Final

from startup.session.preflight.report import Finding, error, warning
from startup.vllm_words.facts import CONNECTORS
from startup.vllm_words.preflight.arguments import GivenStart, name_problem

_NEEDED: Final = {"--enable-auto-tool-choice": "--tool-call-parser", "--enable-log-outputs": "--enable-log-requests"}
_LEAST: Final = {"--max-num-batched-tokens": "--max-num-seqs", "--max-cpu-loras": "--max-loras"}
"""Numbers, each with the one that it must not be below."""


def rule_findings(start: GivenStart) -> Iterator[Finding]:
    """Flags that lack another one, or exclude it; certain if this release of vLLM is known."""
    for problem in _problems(start) if start.facts.flags else ():
        yield (error if start.is_known else warning)("flags", problem)


def _problems(start: GivenStart) -> Iterator[str]:
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
        if isinstance(name, str) and (problem := name_problem(start.facts, CONNECTORS, name, name)):
            yield problem.replace(CONNECTORS, "--kv-transfer-config kv_connector")
