"""`vllm-cli caches` lists and removes files that starts keep for later starts, such as compiled models."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from base.wording import format_bytes
from startup.arguments.param_types import DURATION, SIZE
from startup.compiled_models import local
from startup.compiled_models.record import CompiledModel
from startup.kernels.triton_cache import KEPT
from startup.logs.formatters import escape_controls
from startup.storage.caches import cache_folder
from startup.vllm.launch.plain_state import plain_states
from vllm_cli.errors import CommandGroup
from vllm_cli.terminal import align, printable

_UNITS: Final = (("day", 86400), ("hour", 3600), ("minute", 60))
_HEAD: Final = ("NAME", "SIZE", "LAST USE")

_PLAIN: Final = "reasons of plain starts"
_OTHERS: Final = {
    "latest starts": ("starts/*", "preload/*", "left-to-forks/*"),
    _PLAIN: ("plain/*",),
    "measurements for GPUs": ("graph-memory/*", "late-captures/*", "triton-key/*"),
    "Triton's kernels": (f"{KEPT}/*/*", "kernels/*", "kernel-keys/*"),
    "import file": ("imports/*",),
    "start history": ("history/*", "history.*"),
    "flags of vLLM": ("vllm-facts/*", "hooks/*"),
}
"""Name of a group of other kept files -> the patterns of these files in the cache folder."""


class _Cached(NamedTuple):
    """A compiled model of this machine, or a group of other kept files."""

    name: str
    num_bytes: int
    used_s: float | None = None
    """When a start last used the compiled model, in seconds since 1970. None for a group."""
    record: CompiledModel | None = None
    """The record of the compiled model. None for a group."""
    files: tuple[Path, ...] = ()
    """The files of the group. Empty for a compiled model."""

    @property
    def age_s(self) -> float | None:
        """Seconds since the last use. 0 if the last use is in the future, because a clock was changed."""
        if self.used_s is None:
            return None
        now_s = datetime.now(UTC).timestamp()
        return max(now_s - self.used_s, 0.0)

    @property
    def row(self) -> tuple[str, ...]:
        last_use = "-" if self.age_s is None else _in_arguments(self.age_s)
        return printable((self.name, format_bytes(self.num_bytes), last_use))

    def to_fields(self) -> dict[str, Any]:
        key = self.record and self.record.key
        return {"name": self.name, "key": key, "num_bytes": self.num_bytes, "age_s": self.age_s}


@click.group("caches", cls=CommandGroup, invoke_without_command=True)
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object.")
@click.pass_context
def caches(ctx: click.Context, *, is_json: bool) -> None:
    """List the compiled models and other files that are kept between starts of vLLM.

    The log of a start shows whether vLLM has compiled the model, and why.

    \b
    Examples:
      vllm-cli caches
      vllm-cli caches prune --older 30d --keep 5GiB

    Exit codes: 0 done; 2 usage.
    """
    if ctx.invoked_subcommand is None:
        click.echo(json.dumps(cache_fields(), indent=2) if is_json else describe_caches())
    elif is_json:
        raise click.UsageError(f"give options after `{ctx.invoked_subcommand}`.")


@caches.command("prune")
@click.option(
    "--older",
    "older_s",
    type=DURATION,
    metavar="AGE",
    help="Remove models that no start has used for this time, such as 30d.",
)
@click.option(
    "--keep",
    "keep_bytes",
    type=SIZE,
    metavar="SIZE",
    help="Remove the models used longest ago until at most this size is left, such as 5GiB.",
)
@click.option(
    "--all",
    "is_all",
    is_flag=True,
    help="Remove all that this machine keeps: compiled models, kernels, import file, history.",
)
@click.option(
    "--plain-starts",
    "is_plain",
    is_flag=True,
    help="Remove only the notes of failures that keep later starts from preloading.",
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only show what would be removed.")
def prune(*, older_s: float | None, keep_bytes: int | None, is_all: bool, is_plain: bool, is_dry_run: bool) -> None:
    """Remove compiled models of this machine by age and size, or everything that is kept between starts.

    Servers that are ready are not affected. After --all, the next start compiles and records everything
    again.

    \b
    Examples:
      vllm-cli caches prune --older 30d --keep 5GiB
      vllm-cli caches prune --plain-starts
      vllm-cli caches prune --all

    Exit codes: 0 done; 1 something cannot be removed; 2 usage.
    """
    if older_s is None and keep_bytes is None and not is_all and not is_plain:
        raise click.UsageError("give --older, --keep, --plain-starts or --all.")
    try:
        chosen = _find_all() if is_all else _choose(list(_local_models()), older_s, keep_bytes)
        chosen += [_other(_PLAIN)] if is_plain and not is_all else []
        if not is_dry_run:
            _remove(chosen)
            if is_all:
                local.remove_all()
    except OSError as err:
        raise click.ClickException(str(err)) from err
    shown = [each for each in chosen if each.record or each.num_bytes]
    verb, size = "Would remove" if is_dry_run else "Removed", format_bytes(sum(each.num_bytes for each in shown))
    rows = align([each.row for each in shown])
    click.echo("\n".join([f"{verb} {size}:", *rows] if shown else [f"{verb} nothing."]))


def _local_models() -> Iterator[_Cached]:
    """The compiled models of this machine that have a record."""
    for record in local.read_records():
        with suppress(FileNotFoundError):  # another process has removed the file
            used_s = local.record_path(record).stat().st_mtime
            yield _Cached(record.model, local.num_bytes(record), used_s, record)


def _find_all() -> list[_Cached]:
    """All that this machine keeps: compiled models with a record, those without one, and the other groups."""
    models = list(_local_models())
    num_unrecorded = max(local.num_bytes_of_all() - sum(model.num_bytes for model in models), 0)
    return [*models, _Cached("compiled without a record", num_unrecorded), *map(_other, _OTHERS)]


def _choose(models: Sequence[_Cached], older_s: float | None, keep_bytes: int | None) -> list[_Cached]:
    """The compiled models to remove so that the rest is within the limits. The longest unused come first."""
    ordered = sorted(models, key=lambda model: model.used_s or 0.0)
    total, chosen = sum(model.num_bytes for model in ordered), []
    for model in ordered:
        is_old = older_s is not None and (model.age_s or 0.0) > older_s
        if is_old or (keep_bytes is not None and total > keep_bytes):
            total -= model.num_bytes
            chosen.append(model)
    return chosen


def _other(name: str) -> _Cached:
    """The group of kept files that has this name in `_OTHERS`."""
    found = (path for pattern in _OTHERS[name] for path in cache_folder().glob(pattern))
    files = tuple(path for path in found if path.is_file())
    num_bytes = sum(path.stat().st_size for path in files)
    return _Cached(name, num_bytes, files=files)


def _remove(chosen: Sequence[_Cached]) -> None:
    """Removes compiled models and other files. Raises OSError if one cannot be removed."""
    records = [cached.record for cached in chosen if cached.record is not None]
    for record in records:
        local.remove(record)
    for path in (path for cached in chosen for path in cached.files):
        path.unlink(missing_ok=True)
    if any(map(local.is_installed, records)):
        raise OSError(f"not all can be removed from {local.compiled_folder()}: check its permissions")


def cache_fields() -> dict[str, Any]:
    """What starts keep on this machine, as JSON."""
    return {
        "kept": [cached.to_fields() for cached in _find_all() if cached.record or cached.num_bytes],
        "preloading_disabled": [asdict(state) for state in plain_states()],
    }


def describe_caches() -> str:
    """What starts keep on this machine, as text."""
    rows = [cached.row for cached in _find_all() if cached.record or cached.num_bytes]
    lines = align([_HEAD, *rows]) if rows else ["Nothing is kept."]
    for state in plain_states():
        kind = f"vLLM {state.kind.version}, {state.kind.architecture or 'any model'} {' '.join(state.kind.flags)}"
        lines.append(escape_controls(f"Not preloaded on {state.host}: {kind.strip()}: {state}"))
    return "\n".join(lines)


def _in_arguments(age_s: float) -> str:
    for unit, length_s in _UNITS:
        if count := int(age_s // length_s):
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
