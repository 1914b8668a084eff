"""`vllm-cli preload`: what starts of vLLM have taught the launcher."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from startup.vllm.learned import Lesson


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
    from startup.vllm.learned import all_lessons, lessons_folder

    lessons = all_lessons()
    if as_json:
        click.echo(json.dumps([_fields(lesson) for lesson in lessons], indent=2))
    elif lessons:
        click.echo("\n\n".join(map(_paragraph, lessons)))
    else:
        click.echo(
            f"Nothing has been learnt yet in {lessons_folder()}; the list that comes along serves a first start."
        )


@preload.command("reset")
def reset() -> None:
    """Forget it; the next start begins with the list that comes along, and learns anew.

    \b
    Example:
      vllm-cli preload reset
    """
    from startup.vllm.learned import forget_all

    click.echo(f"Forgot {forget_all()} kinds of start.")


def _fields(lesson: "Lesson") -> dict[str, Any]:
    return {"key": lesson.kind.key, **asdict(lesson)}


def _paragraph(lesson: "Lesson") -> str:
    from startup.vllm.compile_cache import describe

    kind = lesson.kind
    lines = [
        f"{kind.key}: vLLM {kind.version}, {kind.architecture or 'any model'}, Python {kind.python}, {kind.machine}",
        f"  flags {' '.join(kind.flags) or '(none that matter)'}",
        f"  {len(lesson.engine_modules)} modules for engine and workers, {len(lesson.api_modules)} for the API server, "
        f"from {lesson.num_starts} starts",
    ]
    lines += [f"  {name}={value}" for name, value in lesson.environment.items()]
    lines += [f"  not importable: {name} ({reason})" for name, reason in lesson.failed.items()]
    if (caches := describe(lesson.compile_cache)) is not None:
        lines.append(f"  {caches}")
    if lesson.distrust:
        lines.append(f"  not helped any more: {lesson.distrust}")
    return "\n".join(lines)
