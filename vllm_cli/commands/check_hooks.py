"""`vllm-cli check-hooks`: checks which hooks of the launcher fit a version of vLLM."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from startup.errors import StartupError
from startup.processes import interpreter
from vllm_cli.terminal import align

if TYPE_CHECKING:
    from collections.abc import Iterator

    from startup.vllm.launch.hooks import HookReport


@click.command("check-hooks")
@click.option("--json", "as_json", is_flag=True, help="Print version and hooks as JSON.")
@click.option(
    "--vllm",
    "path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with vLLM (for example an unpacked wheel), and with those of vLLM's libraries that are not installed.",
    show_default="the installed vLLM",
)
def check_hooks(*, as_json: bool, path: "Path | None") -> None:
    """Import the modules of vLLM and its libraries, and check which hooks fit their versions.

    A hook is a place where the launcher changes or uses another program's internals (docs/dev/vllm-hooks.md).
    The command also records vLLM's flags, which later starts use for their checks.

    Exit codes: 0 all hooks fit; 1 some do not fit; 2 no vLLM was found.

    \b
    Examples:
      vllm-cli check-hooks
      pip install --target new vllm && vllm-cli check-hooks --vllm new
    """
    from startup.vllm.launch.hooks import report_hooks
    from startup.vllm_words.installed import require_vllm, vllm_in

    try:
        vllm = require_vllm() if path is None else vllm_in(path)
    except StartupError as err:
        raise click.UsageError(str(err)) from err
    if path is not None:
        sys.path.insert(0, str(path.absolute()))
    report = report_hooks(vllm)
    click.echo(json.dumps(report.to_fields(), indent=2) if as_json else "\n".join(describe_check(report)))
    sys.exit(0 if report.all_fit else 1)


def describe_check(report: "HookReport") -> "Iterator[str]":
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
