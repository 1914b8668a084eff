"""Finds faults that would make vLLM fail minutes later and do not depend on vLLM's own abilities."""

import time
from collections.abc import Iterator
from typing import Final

from server.config import ModelFiles
from server.server_config import NetworkConfig
from startup.preflight.address import check_address
from startup.preflight.checkpoint import CONTENT_CHECKS, read_checkpoint
from startup.preflight.disk import check_cache_folder
from startup.preflight.limits import check_shared_memory
from startup.preflight.report import Finding, PreflightReport
from startup.vllm.command_line import CommandLine

_READ_BY_VLLM_ITSELF: Final = ("auto", "hf", "safetensors")
"""Values of --load-format with which vLLM reads the files that are checked here."""


def run_preflight(line: CommandLine, files: ModelFiles | None, *, is_listening: bool) -> PreflightReport:
    """Reports every fault at once and raises for none; `files` is None unless the model is on disk."""
    begin = time.perf_counter()
    findings = tuple(_findings(line, files, is_listening=is_listening))
    return PreflightReport(findings, time.perf_counter() - begin)


def _findings(line: CommandLine, files: ModelFiles | None, *, is_listening: bool) -> Iterator[Finding]:
    if line.listens and not is_listening:
        yield from check_address(NetworkConfig(host=line.host, port=line.port or 0, uds=line.uds))
    if files is not None and line.values.get("--load-format", "auto") in _READ_BY_VLLM_ITSELF:
        yield from (finding for finding in read_checkpoint(files.path).findings if finding.check in CONTENT_CHECKS)
    yield from check_shared_memory()
    yield from check_cache_folder()
