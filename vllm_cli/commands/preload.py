"""`vllm-cli preload`: the profiles that starts of vLLM have recorded, and the hooks that they place."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from startup.errors import StartupError
from startup.imports.learned_imports import delete_learned, read_learned
from vllm_cli.terminal import align

if TYPE_CHECKING:
    from collections.abc import Iterator

    from startup.vllm.fork.preload_profile import PreloadProfile
    from startup.vllm.launch.hooks import HookReport


@click.group("preload")
def preload() -> None:
    """Show or delete the lists of modules that `serve --engine vllm` imports in advance; check its hooks.

    Every start records which modules vLLM's processes had imported when they were ready. The next start of
    the same kind (version, model architecture, flags that matter) preloads these modules once for all
    processes. The import file has the bytecode of all modules that starts of this Python environment import.
    """


@preload.command("show")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON list with one object per kind of start, with all modules."
)
def show(*, as_json: bool) -> None:
    """Show the recorded profiles, by kind of start.

    \b
    Examples:
      vllm-cli preload show
      vllm-cli preload show --json | jq '.[0].engine_modules'
    """
    from startup.vllm.fork.preload_profile import load_all_profiles, profiles_folder

    profiles = load_all_profiles()
    if as_json:
        click.echo(json.dumps([_fields(profile) for profile in profiles], indent=2))
    elif profiles:
        click.echo("\n\n".join(map(_paragraph, profiles)))
    else:
        click.echo(f"No profile is recorded in {profiles_folder()} yet; the first start uses the built-in list.")
    if not as_json and (learned := read_learned()) is not None:
        click.echo(f"\n{learned.path}: bytecode of {learned.num_modules} modules, {learned.num_bytes / 2**20:.0f} MiB")


@preload.command("reset")
def reset() -> None:
    """Delete all profiles and the import file; the next start uses the built-in list and writes new ones.

    \b
    Example:
      vllm-cli preload reset
    """
    from startup.vllm.fork.preload_profile import delete_all_profiles

    import_file = " and the import file" if delete_learned() else ""
    click.echo(f"Deleted {delete_all_profiles()} profiles{import_file}.")


@preload.command("check")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: the version, and all hooks.")
@click.option(
    "--vllm",
    "path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that contains vLLM, such as an unpacked wheel or site-packages.",
    show_default="the installed vLLM",
)
def check(*, as_json: bool, path: "Path | None") -> None:
    """Check which hooks fit a version of vLLM, and of the libraries beside it, by their sources.

    A hook is a place where the launcher changes or uses another program's internals (docs/dev/vllm-hooks.md).
    Nothing is imported from vLLM. Exit codes: 0 if all hooks fit, 1 if one does not, 2 without a vLLM.

    \b
    Examples:
      vllm-cli preload check
      pip download --no-deps vllm && unzip -q 'vllm-*.whl' -d new && vllm-cli preload check --vllm new
    """
    from startup.vllm.installed import require_vllm, vllm_in
    from startup.vllm.launch.hooks import report_hooks

    try:
        vllm = require_vllm() if path is None else vllm_in(path)
    except StartupError as err:
        raise click.UsageError(str(err)) from err
    report = report_hooks(vllm, is_installed=path is None)
    click.echo(json.dumps(report.to_fields(), indent=2) if as_json else "\n".join(_describe_check(report)))
    sys.exit(0 if report.all_fit else 1)


def _describe_check(report: "HookReport") -> "Iterator[str]":
    """What is wrong with each hook, and what follows from it."""
    from startup.vllm.launch.hooks import hook_of

    yield from (f"vLLM {report.vllm.version} in {report.vllm.folder}", "")
    rows = [
        (finding.hook if index == 0 else "", finding.state if index == 0 else "", reason)
        for finding in report.findings
        for index, reason in enumerate(finding.reasons or ("",))
    ]
    yield from (*align(rows), "")
    unfit = [hook_of(finding) for finding in report.findings if finding.state == "does not fit"]
    if essential := [hook.name for hook in unfit if hook.is_essential]:
        yield f"This version starts without preloading, as `vllm serve` does, because of: {', '.join(essential)}."
    elif unfit:
        yield "This version starts with preloading. What it lacks:"
        yield from (f"- {hook.name}: {hook.without}" for hook in unfit)
    elif any(finding.state == "not checked" for finding in report.findings):
        yield "All hooks that could be checked fit this version."
    else:
        yield "All hooks fit this version."


def _fields(profile: "PreloadProfile") -> dict[str, Any]:
    return {"key": profile.kind.key, **asdict(profile)}


def _paragraph(profile: "PreloadProfile") -> str:
    kind = profile.kind
    lines = [
        f"{kind.key}: vLLM {kind.version}, {kind.architecture or 'any model'}, Python {kind.python}, {kind.machine}",
        f"  flags {' '.join(kind.flags) or '(none that matter)'}",
        f"  {len(profile.engine_modules)} modules for engine and workers, "
        f"{len(profile.api_modules)} for the API server, from {profile.num_starts} starts",
    ]
    lines += [f"  {name}={value}" for name, value in profile.environment.items()]
    lines += [f"  not importable: {name} ({reason})" for name, reason in profile.failed.items()]
    if profile.disabled_reason:
        lines.append(f"  preloading is disabled: {profile.disabled_reason}")
    return "\n".join(lines)
