"""`vllm-cli caches` lists and removes files that starts keep for later starts, such as compiled models."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from base.wording import format_bytes
from envs.registry import env
from startup.compiled_models import local
from startup.compiled_models.archive import ArchiveError, read_record
from startup.compiled_models.location import LocationError, open_location
from startup.compiled_models.reasons import other_place
from startup.compiled_models.record import CompiledModel, Hardware
from startup.ground.caches import cache_folder
from startup.ground.config import CompileCacheOption
from startup.ground.logs.formatters import escape_controls
from startup.imports.learned_imports import read_learned
from startup.words.param_types import COMPILE_CACHE, ByteSize, Duration
from vllm_cli.terminal import align, printable

if TYPE_CHECKING:
    from startup.vllm.fork.preload_profile import PreloadProfile

_UNITS: Final = (("day", 86400), ("hour", 3600), ("minute", 60))
_HEAD: Final = ("MODEL", "VLLM", "TORCH", "SIZE", "COMPILED IN", "LAST USE", "HERE")
_HEAD_OF_PROFILES: Final = ("VLLM", "ARCHITECTURE", "MODULES", "STARTS", "FLAGS", "STATE")


_PLAIN: Final = "reasons of plain starts"
_OTHERS: Final = {
    "preload profiles": ("preload/*", "left-to-forks/*"),
    _PLAIN: ("plain/*",),
    "measurements for GPUs": ("graph-memory/*", "triton-key/*"),
    "import file": ("imports/*",),
    "start history": ("history/*", "history.*"),
    "flags of vLLM": ("vllm-facts/*", "hooks/*"),
}
"""Name of a group of other kept files -> the patterns of these files in the cache folder."""


class _Kept(NamedTuple):
    """A compiled model on this machine or in a shared location, or a group of other kept files."""

    name: str
    """The name of the compiled model's archive, or of the group of other files."""
    num_bytes: int
    used_s: float | None = None
    """When a start last used this, or when a store received it, in seconds since 1970. None if unknown."""
    record: CompiledModel | None = None
    location: str | None = None
    """The address of the shared location. None for this machine."""
    problem: str = ""
    """Why the compiled model cannot be loaded here. Empty if it can."""
    files: tuple[Path, ...] = ()
    """The files of the group. Empty for a compiled model."""

    @property
    def title(self) -> str:
        """The model's name if it is known, else `name`."""
        return self.record.model if self.record else self.name

    @property
    def age_s(self) -> float | None:
        """Seconds since the last use. 0 if the last use is in the future, because a clock was changed."""
        return None if self.used_s is None else max(datetime.now(UTC).timestamp() - self.used_s, 0.0)

    @property
    def last_use(self) -> str:
        return "-" if self.age_s is None else _in_words(self.age_s)

    def to_fields(self) -> dict[str, Any]:
        facts = {field: getattr(self.record, field, None) for field in ("model", "key", "versions", "compile_s")}
        own = {"num_bytes": self.num_bytes, "age_s": self.age_s, "problem": self.problem}
        return {"name": self.name, "location": self.location, **facts, **own}


@click.group("caches", invoke_without_command=True)
@click.option(
    "--compile-cache", "option", type=COMPILE_CACHE, metavar="LOCATION", show_default="VCLI_COMPILE_CACHE",
    help="Also list the compiled models in this folder or object store, at most 200.",
)  # fmt: skip
@click.option(
    "--json", "is_json", is_flag=True, help="Print a JSON object, which also lists the modules of the profiles."
)
@click.pass_context
def caches(ctx: click.Context, *, option: CompileCacheOption | None, is_json: bool) -> None:
    """List compiled models, preload profiles and the import file, which are kept between starts of vLLM.

    HERE shows whether a compiled model fits this machine's versions and hardware. The log of a start shows
    whether vLLM has compiled the model, and why. For an object in a store, LAST USE is the time when it was
    added. A start imports the modules of its preload profile once for all processes. The import file has the
    bytecode of these modules.

    \b
    Examples:
      vllm-cli caches
      vllm-cli caches --compile-cache s3://bucket/compiled
      vllm-cli caches --json | jq '.preload_profiles[0].engine_modules'

    Exit codes: 0 done; 1 LOCATION cannot be used; 2 usage.
    """
    if ctx.invoked_subcommand is not None:
        if option is not None or is_json:
            raise click.UsageError(f"give options after `{ctx.invoked_subcommand}`.")
        return
    address = (option or CompileCacheOption.of(env.VCLI_COMPILE_CACHE.get() or "")).location
    models = _of_this_machine()
    failure = None
    if address is not None:
        try:
            models[address] = _examine(_archives(address))
        except LocationError as err:
            failure = str(err)
    click.echo(json.dumps(kept_fields(models), indent=2) if is_json else describe_kept(models))
    if failure is not None:
        raise click.ClickException(failure)


@caches.command("prune")
@click.option(
    "--older",
    "older_s",
    type=Duration(),
    metavar="AGE",
    help="Remove models that no start has used for this time, such as 30d.",
)
@click.option(
    "--keep", "keep_bytes", type=ByteSize(), metavar="SIZE",
    help="Remove the models used longest ago until at most this size is left, such as 5GiB.",
)  # fmt: skip
@click.option(
    "--all", "is_all", is_flag=True,
    help="Remove all that this machine keeps: compiled models, profiles, import file, history.",
)  # fmt: skip
@click.option(
    "--plain-starts", "is_plain", is_flag=True,
    help="Remove only the notes of failures that keep later starts from preloading.",
)  # fmt: skip
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
    models = list(_local_models())
    try:
        if is_all:
            chosen = [*models, _Kept("compiled without a record", _num_unrecorded_bytes(models))]
        else:
            chosen = _choose(models, older_s, keep_bytes)
        chosen += map(_other, _OTHERS if is_all else (_PLAIN,) if is_plain else ())
        if not is_dry_run:
            _remove(chosen)
            if is_all:
                local.remove_all()
    except OSError as err:
        raise click.ClickException(str(err)) from err
    shown = [each for each in chosen if each.record or each.num_bytes]
    verb, size = "Would remove" if is_dry_run else "Removed", format_bytes(sum(each.num_bytes for each in shown))
    rows = [printable((each.title, format_bytes(each.num_bytes), each.last_use)) for each in shown]
    click.echo("\n".join([f"{verb} {size}:", *align(rows)] if shown else [f"{verb} nothing."]))


def _local_models() -> Iterator[_Kept]:
    """The compiled models of this machine that have a record."""
    for record in local.read_records():
        with suppress(FileNotFoundError):  # another process has removed the file
            used_s = local.record_path(record).stat().st_mtime
            yield _Kept(record.archive_name, local.num_bytes(record), used_s, record)


def _archives(address: str) -> Iterator[_Kept]:
    """The archives of a shared location, with their records. Raises LocationError."""
    location = open_location(address)
    for stored in location.list():
        record, problem = None, ""
        try:
            with location.open(stored.name) as file:
                record = read_record(file)
        except (ArchiveError, OSError) as err:
            problem = str(err)
        yield _Kept(stored.name, stored.size, stored.modified_s, record, address, problem)


def _examine(models: Iterator[_Kept]) -> list[_Kept]:
    """Adds to each compiled model the reason why it cannot be loaded here, if there is a reason."""
    from startup.compiled_models.compile_cache import present_versions  # noqa: PLC0415 - slow to import for --help
    from startup.vllm_words.installed import find_vllm

    vllm, hardware = find_vllm(), Hardware.present()
    versions = present_versions(vllm) if vllm else None

    def problem(model: _Kept) -> str:
        if model.record is None:
            return model.problem
        is_missing = model.location is None and not local.is_installed(model.record)
        return "its files are missing" if is_missing else _why_not_here(model.record, versions, hardware)

    return [model._replace(problem=problem(model)) for model in models]


def _why_not_here(record: CompiledModel, versions: Mapping[str, str] | None, hardware: Hardware) -> str:
    if versions is None:
        return "vLLM is not installed here"
    changes = other_place(record, versions, hardware)
    return "; ".join(f"{each.name} {each.before or 'none'}, here {each.now or 'none'}" for each in changes)


def _choose(models: Sequence[_Kept], older_s: float | None, keep_bytes: int | None) -> list[_Kept]:
    """The compiled models to remove so that the rest is within the limits. The longest unused come first."""
    ordered = sorted(models, key=lambda model: model.used_s or 0.0)
    total, chosen = sum(model.num_bytes for model in ordered), []
    for model in ordered:
        is_old = older_s is not None and (model.age_s or 0.0) > older_s
        if is_old or (keep_bytes is not None and total > keep_bytes):
            total -= model.num_bytes
            chosen.append(model)
    return chosen


def _other(name: str) -> _Kept:
    """The group of kept files that has this name in `_OTHERS`."""
    files = tuple(path for pattern in _OTHERS[name] for path in cache_folder().glob(pattern) if path.is_file())
    return _Kept(name, sum(path.stat().st_size for path in files), files=files)


def _num_unrecorded_bytes(models: Sequence[_Kept]) -> int:
    return max(local.num_bytes_of_all() - sum(model.num_bytes for model in models), 0)


def _remove(chosen: Sequence[_Kept]) -> None:
    """Removes compiled models and other files. Raises OSError if one cannot be removed."""
    records = [kept.record for kept in chosen if kept.record is not None]
    for record in records:
        local.remove(record)
    for path in (path for kept in chosen for path in kept.files):
        path.unlink(missing_ok=True)
    if any(map(local.is_installed, records)):
        raise OSError(f"not all can be removed from {local.compiled_folder()}: check its permissions")


def kept_fields(models: Mapping[str | None, list[_Kept]] | None = None) -> dict[str, Any]:
    """All files that starts keep, as JSON. `models`: compiled models by address. Default: this machine's."""
    from startup.vllm.fork.preload_profile import load_all_profiles, plain_states

    learned, models = read_learned(), models or _of_this_machine()
    return {
        "compiled_models": [model.to_fields() for found in models.values() for model in found],
        "unrecorded": {"keys": sorted(local.unrecorded_keys()), "num_bytes": _num_unrecorded_bytes(models[None])},
        "preload_profiles": [{"key": each.kind.key, **asdict(each)} for each in load_all_profiles()],
        "preloading_disabled": [asdict(state) for state in plain_states()],
        "import_file": None if learned is None else {**learned._asdict(), "path": str(learned.path)},
    }


def describe_kept(models: Mapping[str | None, list[_Kept]] | None = None) -> str:
    """All files that starts keep, as text. `models`: compiled models by address. Default: this machine's."""
    return "\n\n".join("\n".join(part) for part in _sections(models or _of_this_machine()))


def _of_this_machine() -> dict[str | None, list[_Kept]]:
    return {None: _examine(_local_models())}


def _sections(models: Mapping[str | None, list[_Kept]]) -> Iterator[list[str]]:
    from startup.vllm.fork.preload_profile import load_all_profiles, plain_states, profiles_folder

    for address, found in models.items():
        place = escape_controls(address or str(local.compiled_folder()))
        if not found:
            yield [f"No compiled model is in {place}."]
            continue
        rows = list(map(_row, sorted(found, key=lambda model: model.age_s or 0.0)))
        size = format_bytes(sum(model.num_bytes for model in found))
        yield [f"Compiled models in {place}: {len(found)}, {size}", *align([_HEAD, *rows])]
    if num_bytes := _num_unrecorded_bytes(models[None]):
        keys = len(local.unrecorded_keys())
        yield [f"Without a record: {keys} compiled models (with other files of vLLM {format_bytes(num_bytes)})"]
    if rows := list(map(_profile_row, load_all_profiles())):
        yield [f"Preload profiles in {profiles_folder()}: {len(rows)}", *align([_HEAD_OF_PROFILES, *rows])]
    else:
        yield [f"No preload profile is in {profiles_folder()}. The first start uses the built-in list."]
    for state in plain_states():
        kind = f"vLLM {state.kind.version}, {state.kind.architecture or 'any model'} {' '.join(state.kind.flags)}"
        yield [escape_controls(f"Not preloaded on {state.host}: {kind.strip()}: {state}")]
    if (learned := read_learned()) is not None:
        yield [f"Import file {learned.path}: {learned.num_modules} modules, {format_bytes(learned.num_bytes)}"]


def _row(model: _Kept) -> tuple[str, ...]:
    record, versions = model.record, model.record.versions if model.record else {}
    return printable(
        (
            model.title,
            versions.get("vllm", "-"),
            versions.get("torch", "-"),
            format_bytes(model.num_bytes),
            f"{record.compile_s:.1f} s" if record else "-",
            model.last_use,
            model.problem or "fits",
        )
    )


def _profile_row(profile: "PreloadProfile") -> tuple[str, ...]:
    kind = profile.kind
    num_modules = len(profile.engine_modules) + len(profile.api_modules)
    state = f"used, without {len(profile.failed)} that cannot be imported" if profile.failed else "used"
    flags = " ".join(kind.flags) or "(none that matter)"
    return printable(
        (kind.version, kind.architecture or "any", str(num_modules), str(profile.num_starts), flags, state)
    )


def _in_words(age_s: float) -> str:
    for unit, length_s in _UNITS:
        if count := int(age_s // length_s):
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
