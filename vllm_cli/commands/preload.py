"""`vllm-cli preload`: what starts of vLLM have taught the launcher."""

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from startup.vllm.preload_profile import PreloadProfile


@click.group("preload")
def preload() -> None:
    """Show or forget which modules `serve --engine vllm` imports before vLLM asks for them.

    Every start notes what vLLM's processes had imported when they were ready; the next start of the same kind
    (version, model architecture, flags that matter) imports that beforehand, once for all of them.
    """


@preload.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per kind of start, in a list, with all modules.")
def show(*, as_json: bool) -> None:
    """Show what has been learnt, by kind of start.

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
        click.echo(
            f"Nothing has been learnt yet in {profiles_folder()}; the list that comes along serves a first start."
        )


@preload.command("reset")
def reset() -> None:
    """Forget it; the next start begins with the list that comes along, and learns anew.

    \b
    Example:
      vllm-cli preload reset
    """
    from startup.vllm.preload_profile import delete_all_profiles

    click.echo(f"Forgot {delete_all_profiles()} kinds of start.")


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
