"""`vllm-cli doctor`: reports whether a start can succeed here. Flags limit it to variables or to hooks."""

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from base.exit_codes import OK, USAGE
from base.machine.hardware import cpu_model
from base.wording import list_some
from envs.registry import unknown_variables, variables
from envs.variable import EnvError, EnvVar
from startup.arguments.errors import InputError
from startup.arguments.option import ServeFlagsCommand, complete_model
from startup.arguments.serve_command import read_start
from startup.embedded.installed import require_embedded_engine
from startup.errors import StartupError
from startup.processes import interpreter
from startup.reports.timeline.history import installed_versions
from startup.session.preflight.report import PreflightReport, describe_count, error
from startup.settings.config import StartupConfig
from startup.settings.serve_arguments import LauncherLine, ParsedOption
from startup.vllm_arguments.options import VllmOptions
from vllm_cli.commands.caches import cache_fields, describe_caches
from vllm_cli.commands.serve import preflight_of
from vllm_cli.terminal import align
from vllm_cli.version import VERSION

if TYPE_CHECKING:
    from startup.vllm.launch.hooks import HookReport
    from startup.vllm_arguments.installed import InstalledVllm

_FAULTY = 1

_HELP = """Report whether a server can be started here, with a verdict in the first line.

The report has what MODEL needs with the given flags of `serve`, faults (as `serve --preflight-only`), the hooks if the
engine is vLLM, the machine and its packages for a bug report, and what `caches` lists. Secrets are masked. Several
models and `--models FILE` are checked as a router would serve them; each has a section. Without MODEL and flags,
nothing is checked that depends on them. Nothing is started.

A hook is a place where the launcher changes or uses internals of vLLM or its libraries (docs/dev/vllm-hooks.md). The
check imports their modules, and records vLLM's flags, which later starts use for their checks.

\b
Examples:
  vllm-cli doctor
  vllm-cli doctor Qwen/Qwen3-0.6B --max-model-len 8k
  vllm-cli doctor Qwen/Qwen3-0.6B ./my-model
  vllm-cli doctor --json | jq .verdict
  vllm-cli doctor --env
  pip install --target new vllm && vllm-cli doctor --hooks --vllm new

Exit codes: 0 a start can succeed; 1 an error, or a hook that does not fit; 2 usage, a wrong variable, or no vLLM for
--hooks.
"""


_CAN_START: Final = "can be started here"


class _Examined(NamedTuple):
    """The results of all checks."""

    subject: str
    """The checked engine or models, as text."""
    outcome: str
    """What can be said of the subject if there is no error."""
    preflight: PreflightReport
    vllm: "InstalledVllm | None"
    """The installed vLLM, if the engine is vLLM."""
    models: Mapping[str, PreflightReport] = {}
    """Name of a router's model -> its findings. Findings that belong to no model are under the empty name."""


@click.command(
    "doctor",
    cls=ServeFlagsCommand,
    help=_HELP,
    context_settings={"max_content_width": 120},
    options_metavar="[OPTIONS] [SERVE FLAGS]",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL ...]", shell_complete=complete_model)
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object.")
@click.option("--env", "is_of_variables", is_flag=True, help="Only show all environment variables, with errors.")
@click.option("--hooks", "is_of_hooks", is_flag=True, help="Only check which hooks fit the installed vLLM.")
@click.option(
    "--vllm",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="For --hooks: folder with a vLLM (for example an unpacked wheel), and with libraries that are not installed.",
)
def doctor(
    *, arguments: tuple[str, ...], is_json: bool, is_of_variables: bool, is_of_hooks: bool, folder: Path | None
) -> int:
    """Runs the command. Returns the exit code."""
    if is_of_variables + is_of_hooks + bool(arguments) > 1 or (folder and not is_of_hooks):
        raise click.UsageError("Give --env, --hooks (which may have --vllm), or arguments of `serve`.")
    if is_of_variables:
        return show_variables(is_json=is_json)
    if is_of_hooks:
        return _show_hooks(folder, is_json=is_json)
    read, start = read_start(LauncherLine(arguments))
    examined = _examine_models(read.of_router) if start is None else _examine(start, has_arguments=bool(arguments))
    hooks = None
    if examined.vllm is not None:
        from startup.vllm.launch.hooks import report_hooks

        hooks = report_hooks(examined.vllm)
    verdict = _verdict(examined, hooks)
    if is_json:
        click.echo(_to_json(verdict, examined, hooks))
    else:
        click.echo("\n\n".join((verdict, *_parts(examined, hooks))))
    if examined.preflight.has_usage_error:
        return USAGE
    hooks_fit = hooks is None or hooks.all_fit
    return OK if hooks_fit and not examined.preflight.errors else _FAULTY


def _examine_models(parts: Sequence[ParsedOption]) -> _Examined:
    """Checks the models of a router."""
    from router.arguments.router_arguments import read_several
    from router.arguments.router_options import ModelsReader
    from startup.vllm_arguments.installed import find_vllm

    several = read_several(parts)
    checked = ModelsReader(several._replace(config=replace(several.config, is_preflight_only=True))).read()
    vllm = find_vllm() if any(entry.engine == "vllm" for entry in checked.entries.values()) else None
    return _Examined(list_some([*checked.models]), _CAN_START, checked.report(0.0), vllm, checked.reports())


def _examine(start: StartupConfig | VllmOptions, *, has_arguments: bool) -> _Examined:
    """Checks the engine. If the command line has arguments, also checks a start with them."""
    vllm = None
    try:
        if isinstance(start, StartupConfig):
            require_embedded_engine()
        else:
            from startup.vllm_arguments.installed import require_vllm

            vllm = require_vllm()
        preflight = preflight_of(start) if has_arguments else PreflightReport((), 0.0)
    except StartupError as err:
        finding = error("engine", str(err), err.cause)
        return _Examined("", "", PreflightReport((finding,), 0.0), None)
    outcome = _CAN_START if has_arguments else "is installed. No start was checked, because no MODEL is given"
    return _Examined(f"vLLM {vllm.version}" if vllm else "the embedded engine", outcome, preflight, vllm)


def _verdict(examined: _Examined, hooks: "HookReport | None") -> str:
    preflight = examined.preflight
    unfit = [finding for finding in hooks.findings if finding.state == "does not fit"] if hooks else []
    counts = [describe_count(len(preflight.errors), "error")] if preflight.errors else ["ok"]
    if preflight.unchecked:
        counts.append(f"{len(preflight.unchecked)} not checked")
    if num_warnings := len(preflight.warnings) + len(unfit):
        counts.append(describe_count(num_warnings, "warning"))
    faults = [finding.message.partition("\n")[0] for finding in preflight.errors]
    return f"{', '.join(counts)}: {faults[0] if faults else f'{examined.subject} {examined.outcome}'}"


def _to_json(verdict: str, examined: _Examined, hooks: "HookReport | None") -> str:
    fields = {
        "verdict": verdict,
        **_to_fields(examined.preflight),
        "models": {name: _to_fields(report) for name, report in examined.models.items() if name},
        "hooks": hooks and hooks.to_fields(),
        "machine": describe_machine(),
        "kept": cache_fields(),
    }
    return json.dumps(fields, indent=2)


def _to_fields(report: PreflightReport) -> dict[str, Any]:
    findings = [finding.to_fields() for finding in report.findings]
    return {"ok": not report.errors, "is_complete": not report.unchecked, "findings": findings}


def _parts(examined: _Examined, hooks: "HookReport | None") -> Iterator[str]:
    """Yields the parts of the report."""
    import yaml

    for name, report in (examined.models or {"": examined.preflight}).items():
        if name or report.findings:
            yield "\n".join((f"# Preflight of {name}" if name else "# Preflight", *(report.lines() or ["ok"])))
    if hooks is not None:
        yield "\n".join(("# Hooks", *_describe_hooks(hooks)))
    yield f"# Machine\n{yaml.safe_dump(describe_machine(), sort_keys=False, width=1000).rstrip()}"
    yield f"# Kept between starts\n{describe_caches()}"


def _show_hooks(folder: Path | None, *, is_json: bool) -> int:
    """Prints which hooks fit the installed vLLM, or the one in the folder. Returns the exit code."""
    from startup.vllm.launch.hooks import report_hooks
    from startup.vllm_arguments.installed import require_vllm, vllm_in

    try:
        vllm = require_vllm() if folder is None else vllm_in(folder)
    except StartupError as err:
        raise click.UsageError(str(err)) from err
    if folder is not None:
        sys.path.insert(0, str(folder.absolute()))
    report = report_hooks(vllm)
    text = json.dumps(report.to_fields(), indent=2) if is_json else "\n".join(_describe_hooks(report))
    click.echo(text)
    return OK if report.all_fit else _FAULTY


def _describe_hooks(report: "HookReport") -> Iterator[str]:
    """Yields the state of each hook with its reasons, then the consequences."""
    from startup.vllm.launch.hooks import hook_of

    tested = "" if interpreter.is_tested() else ", which is not tested: a start tries a fork first"
    yield from (f"vLLM {report.vllm.version} in {report.vllm.folder}", f"{interpreter.name()}{tested}", "")
    rows = [
        (finding.hook if index == 0 else "", finding.state if index == 0 else "", reason)
        for finding in report.findings
        for index, reason in enumerate(finding.reasons or ("",))
    ]
    yield from (*align(rows), "")
    unfit = [hook_of(finding) for finding in report.findings if finding.state == "does not fit"]
    if essential := [hook.name for hook in unfit if hook.is_essential]:
        yield f"This version starts without preloading, like `vllm serve`. The reason: {', '.join(essential)}."
    elif unfit:
        yield "This version starts with preloading. These hooks do not fit:"
        yield from (f"- {hook.name}: {hook.without}" for hook in unfit)
    elif any(finding.state == "not checked" for finding in report.findings):
        yield "All hooks that could be checked fit this version."
    else:
        yield "All hooks fit this version."


def show_variables(*, is_json: bool) -> int:
    """Prints every environment variable: type, default, value and source. Raises InputError for a wrong one.

    Variables that only this program sets are shown only if they are set.
    """
    shown = [variable for variable in variables() if not variable.is_internal or variable.raw is not None]
    rows = list(map(_describe, shown))
    click.echo(json.dumps(rows, indent=2) if is_json else "\n\n".join(map(_paragraph, rows)))
    problems = [row["error"] for row in rows if row["error"]]
    problems += [f"{unknown}." for unknown in unknown_variables()]
    if problems:
        raise InputError("\nError: ".join(problems))
    return OK


def _describe(variable: EnvVar[Any]) -> dict[str, Any]:
    """All facts about a variable, as JSON values."""
    try:
        value, error = variable.show(variable.get()), None
    except EnvError as err:
        value, error = variable.show(variable.raw), str(err)
    return {
        "name": variable.name,
        "type": variable.kind,
        "choices": list(variable.choices),
        "default": variable.show(variable.default),
        "value": value,
        "source": variable.source,
        "description": variable.description,
        "error": error,
    }


def _paragraph(row: dict[str, Any]) -> str:
    type_ = f"{row['type']}: {'|'.join(row['choices'])}" if row["type"] == "choice" else row["type"]
    return (
        f"{row['name']} = {row['value'] or '(unset)'}\n"
        f"  {row['description']}\n"
        f"  type {type_}, default {row['default'] or '(unset)'}, from the {row['source']}"
    )


_PACKAGES: Final = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "uvloop",
    "httptools",
    "msgspec",
    "llguidance",
    "click",
    "vllm",
)


def describe_machine() -> dict[str, Any]:
    """All facts for a bug report. Secrets are masked."""
    import psutil

    memory, versions = psutil.virtual_memory(), installed_versions(_PACKAGES)
    return {
        "vllm-cli": VERSION,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0))},
        "memory": {"total_bytes": memory.total, "available_bytes": memory.available},
        "gpus": _gpus(),
        "packages": {name: versions.get(name) for name in _PACKAGES},
        "environment": {v.name: v.show(v.raw) for v in variables() if v.raw is not None},
    }


def _gpus() -> list[str]:
    from base.machine.nvml import read_gpus  # noqa: PLC0415 - loads ctypes

    if (state := read_gpus()) is None:
        return []
    if state.problem is not None:
        return [f"not usable: {state.problem}"]
    return [f"{gpu.name}, {gpu.total_bytes >> 20} MiB, driver {state.driver}" for gpu in state.gpus]
