"""`vllm-cli preload`: the preload profiles that starts of vLLM have recorded."""

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from startup.vllm.preload_profile import PreloadProfile


@click.group("preload")
def preload() -> None:
    """Show or delete the lists of modules that `serve --engine vllm` imports before vLLM needs them.

    Every start records which modules vLLM's processes had imported when they were ready. The next start of
    the same kind (version, model architecture, flags that matter) preloads these modules once for all
    processes.
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
    from startup.vllm.preload_profile import load_all_profiles, profiles_folder

    profiles = load_all_profiles()
    if as_json:
        click.echo(json.dumps([_fields(profile) for profile in profiles], indent=2))
    elif profiles:
        click.echo("\n\n".join(map(_paragraph, profiles)))
    else:
        click.echo(f"No profile is recorded in {profiles_folder()} yet; the first start uses the built-in list.")


@preload.command("reset")
def reset() -> None:
    """Delete all profiles; the next start uses the built-in list and records a new profile.

    \b
    Example:
      vllm-cli preload reset
    """
    from startup.vllm.preload_profile import delete_all_profiles

    click.echo(f"Deleted {delete_all_profiles()} profiles.")


def _fields(profile: "PreloadProfile") -> dict[str, Any]:
    return {"key": profile.kind.key, **profile.to_fields()}


def _paragraph(profile: "PreloadProfile") -> str:
    from startup.vllm.compile_cache import describe

    kind = profile.kind
    lines = [
        f"{kind.key}: vLLM {kind.version}, {kind.architecture or 'any model'}, Python {kind.python}, {kind.machine}",
        f"  flags {' '.join(kind.flags) or '(none that matter)'}",
        f"  {len(profile.engine_modules)} modules for engine and workers, "
        f"{len(profile.api_modules)} for the API server, from {profile.num_starts} starts",
    ]
    lines += [f"  {name}={value}" for name, value in profile.environment.items()]
    lines += [f"  not importable: {name} ({reason})" for name, reason in profile.failed.items()]
    if (caches := describe(profile.compile_cache)) is not None:
        lines.append(f"  {caches}")
    if profile.disabled_reason:
        lines.append(f"  not helped any more: {profile.disabled_reason}")
    return "\n".join(lines)
