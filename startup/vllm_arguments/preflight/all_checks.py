"""Runs all checks of a start of vLLM before heavy imports, so that all faults are reported at once.

A finding is an error only if this vLLM certainly fails because of it. If a plugin, an override or another
machine may change the result, the finding is a warning. The checks use flags and names that earlier starts of
the installed vLLM have recorded (`startup.vllm_arguments.vllm_record`). The checks also repeat some rules of
vLLM. If a start breaks one, this is an error for the releases with which the rules were compared, and a
warning for newer releases. `vllm_cli.explain` explains faults that vLLM itself reports later. Starts of
vllm-omni (--omni) are not checked.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from base.json_form import json_form
from base.server_settings import NetworkConfig, TlsConfig
from base.wording import list_some
from envs.foreign import expand_home
from server.terms.sampling_values import FILE
from startup.files.model.checkpoint_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_problem
from startup.files.model.file_faults import first_problem, read_json_object
from startup.files.model.model_request import parse_adapter
from startup.session.preflight.all_checks import PreflightOptions, download_checks, is_importable
from startup.session.preflight.checkpoint import sampling_findings
from startup.session.preflight.network import check_address, check_tls
from startup.session.preflight.report import (
    FLAGS,
    USAGE,
    CheckGroup,
    Finding,
    PreflightReport,
    error,
    run_checks,
    unchecked,
    warning,
)
from startup.session.preflight.resources import check_cache_folder
from startup.settings.serve_arguments import OMNI
from startup.vllm_arguments.installed import OLDEST, InstalledVllm
from startup.vllm_arguments.preflight.arguments import GivenStart, argument_findings, rule_findings
from startup.vllm_arguments.preflight.devices import device_findings
from startup.vllm_arguments.preflight.model import ModelOnDisk
from startup.vllm_arguments.preflight.model_settings import setting_findings
from startup.vllm_arguments.preflight.surroundings import surroundings_findings
from startup.vllm_arguments.vllm_line import VllmLine

_WAY_ROUND: Final = "if vLLM would accept this start, give --preflight warn"

_WITHOUT_ADDRESS: Final = ("--headless",)
"""With this flag, no API server listens."""
_TEMPLATE_CHARACTERS: Final = "{}\n"
"""If --chat-template contains one of these, its value is the template itself."""
_LEAST_PLUGIN: Final = 4
"""The least length of a plugin's path. vLLM ignores shorter values."""
_NO_ADAPTER: Final = ("", "None")
"""Values of --lora-modules that vLLM skips."""


def run_preflight(vllm: InstalledVllm, line: VllmLine, options: PreflightOptions) -> PreflightReport:
    """Runs all checks, and reports all faults at once. Does not raise for a fault."""
    return replace(run_checks(_groups(vllm, line, options)), way_round=_WAY_ROUND)


def _groups(vllm: InstalledVllm, line: VllmLine, options: PreflightOptions) -> Iterator[CheckGroup]:
    start = GivenStart(vllm, line)
    yield FLAGS, lambda: _unknown_rules(start, options)
    if OMNI in line.arguments:
        return
    yield from _groups_of_arguments(start, options)
    if line.listens and line.port and not options.is_listening:
        yield (
            "address",
            lambda: check_address(NetworkConfig(host=line.host, port=line.port or 0, uds=line.uds)),
        )
    elif not options.is_listening and not line.has(*_WITHOUT_ADDRESS) and line.port != 0:
        yield "address", lambda: [unchecked("address", "the address is not checked: vLLM itself will listen there")]
    yield "cache", check_cache_folder


def _unknown_rules(start: GivenStart, options: PreflightOptions) -> Iterator[Finding]:
    """Says which rules of this vLLM are not known here, so that a report without faults does not mislead."""
    if OMNI in start.line.arguments:
        yield unchecked(FLAGS, f"{OMNI}: vllm-omni reads the command line, so nothing of this start is checked")
        return
    if options.flags_problem is not None:
        what = "vLLM's flags and their values could not be checked, because its parser cannot be loaded"
        yield error(FLAGS, f"{what}: {options.flags_problem}")
    elif not start.record.flags:
        yield unchecked(FLAGS, "vLLM's own flags are checked by vLLM: first start here")
    if not start.vllm.is_new_enough:
        oldest = ".".join(map(str, OLDEST))
        yield unchecked("version", f"vLLM {start.vllm.version} is older than {oldest}, so a start checks nothing")
    if start.record.plugins:
        names = list_some([plugin.name for plugin in start.record.plugins])
        yield unchecked("plugins", f"rules that plugins of vLLM may change ({names}) are not checked, or only warn")


def _groups_of_arguments(start: GivenStart, options: PreflightOptions) -> Iterator[CheckGroup]:
    yield "command_line", lambda: argument_findings(start)
    if start.line.faults:
        yield "model", lambda: [unchecked("model", "the model and more are checked once these errors are corrected")]
        return
    yield FLAGS, lambda: rule_findings(start)
    model = ModelOnDisk(start)
    yield "model", model.findings
    yield "settings", lambda: setting_findings(start, model)
    yield "files", lambda: file_findings(start)
    yield "devices", lambda: device_findings(start, model)
    yield "surroundings", lambda: surroundings_findings(start)
    yield from download_checks(model.downloads, start.value("--hf-token") or None, options)


def file_findings(start: GivenStart) -> Iterator[Finding]:
    """Reports all files, folders and modules that are named but missing or faulty."""
    yield from _check_template(start)
    yield from _check_tls(start)
    yield from _check_plugins(start)
    yield from _check_imports(start)
    yield from _check_adapters(start)
    yield from _check_log_config(start)
    yield from _check_generation_config(start)


def _check_generation_config(start: GivenStart) -> Iterator[Finding]:
    """Checks the sampling values. vLLM itself fails with an object that is none, and with a limit below 1."""
    settings = start.value("--generation-config")
    if settings and settings.startswith(("/", ".")) and not Path(settings).exists():
        report = error if start.is_known else warning
        yield report("files", f"--generation-config {settings}: there is no such folder")
        return
    folder = start.line.model_folder if settings in (None, "auto") else Path(settings)
    file = folder / FILE if folder is not None and settings != "vllm" else Path(os.devnull)
    problem = (read_json_object(file).problem if file.is_file() else None) or ""
    if problem.endswith("is not a JSON object"):  # vLLM starts without a file that is no JSON
        yield (error if start.is_known else warning)("generation_config", problem)
    override = start.value("--override-generation-config")
    for finding in sampling_findings(file, override if isinstance(override, dict) else {}):
        yield finding if start.is_known else finding._replace(severity="warning")


def _check_template(start: GivenStart) -> Iterator[Finding]:
    template = start.value("--chat-template")
    if not template or any(character in template for character in _TEMPLATE_CHARACTERS):
        return
    built_in = start.vllm.folder / "transformers_utils" / "chat_templates" / template
    if not Path(template).exists() and not built_in.exists():
        yield error("chat_template", f"--chat-template {template}: there is no such file")


def _check_tls(start: GivenStart) -> Iterator[Finding]:
    """Reports missing TLS files. Faults in their content are warnings, because vLLM reads them late.

    Without a certificate or a key, vLLM reads none of these files, and a missing file is only a warning.
    """
    certificate, key = start.value("--ssl-certfile"), start.value("--ssl-keyfile")
    authorities = start.value("--ssl-ca-certs")
    given = {"--ssl-certfile": certificate, "--ssl-keyfile": key, "--ssl-ca-certs": authorities}
    missing = [f"{flag} {name}" for flag, name in given.items() if name and not Path(name).is_file()]
    for text in missing:
        yield (error if certificate or key else warning)("tls", f"{text}: there is no such file")
    if not missing and certificate:
        config = TlsConfig(ssl_certfile=certificate, ssl_keyfile=key, ssl_ca_certs=authorities)
        yield from (finding._replace(severity="warning") for finding in check_tls(config))


def _check_plugins(start: GivenStart) -> Iterator[Finding]:
    for flag in ("--tool-parser-plugin", "--reasoning-parser-plugin"):
        name = start.value(flag)
        if name and len(name) >= _LEAST_PLUGIN and not Path(name).is_file():
            yield warning("plugin", f"{flag} {name}: there is no such file")


def _check_imports(start: GivenStart) -> Iterator[Finding]:
    """Checks that vLLM can find the packages from which it imports classes and functions by name."""
    for flag in ("--middleware", "--logits-processors"):
        for name in start.all_values(flag):
            package = name.partition(":")[0].partition(".")[0]
            if "." not in name and ":" not in name:
                yield warning("imports", f"{flag} {name} is no import path such as package.module.name")
            elif package.isidentifier() and not start.record.plugins and not is_importable(package):
                yield error("imports", f"{flag} {name}: there is no module {package}. Install it, or set PYTHONPATH")


def _check_adapters(start: GivenStart) -> Iterator[Finding]:
    most = start.number("--max-lora-rank", 16)
    for text in start.all_values("--lora-modules"):
        if text in _NO_ADAPTER:
            continue
        name, path = parse_adapter(text)
        if name is None or path is None:
            what = f"--lora-modules {text!r} is neither NAME=PATH nor JSON with name and path"
            yield error(USAGE, f"{what}{json_form(text)}")
            continue
        if not start.has("--enable-lora"):
            yield error("lora", f"--lora-modules {name} needs --enable-lora")
        yield from _check_adapter(Path(expand_home(path)), most)


def _check_adapter(folder: Path, most: int) -> Iterator[Finding]:
    if not folder.is_dir():
        if folder.is_absolute() or str(folder).startswith("."):
            yield error("lora", f"--lora-modules: there is no folder {folder}")
        return
    has_config = (folder / ADAPTER_CONFIG).is_file()
    if problem := first_problem(folder / name for name in ADAPTER_WEIGHTS) if has_config else adapter_problem(folder):
        yield error("lora", f"--lora-modules: {problem}")
        return
    config = read_json_object(folder / ADAPTER_CONFIG)
    if config.problem:
        yield error("lora", f"--lora-modules: {config.problem}")
    elif isinstance(rank := config.content.get("r"), int) and rank > most:
        yield error("lora", f"{folder} has rank {rank}, --max-lora-rank allows {most}: give --max-lora-rank {rank}")


def _check_log_config(start: GivenStart) -> Iterator[Finding]:
    """Warns about a faulty file. A faulty file is no error, because vLLM before 0.31 does not read it."""
    name = start.value("--log-config-file")
    if name and (problem := read_json_object(Path(name)).problem):
        yield warning("log_config", f"--log-config-file: {problem}")
