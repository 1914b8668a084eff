"""`vllm-cli caches`: what is kept between starts: compiled models, preload profiles, the import file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from base.wording import format_bytes
from envs.registry import env
from startup.compile_cache import local
from startup.compile_cache.archive import ArchiveError, read_record
from startup.compile_cache.location import MOST_LISTED, Location, LocationError, open_location
from startup.compile_cache.reasons import other_place
from startup.compile_cache.record import CompiledModel, Hardware
from startup.config import CompileCacheOption
from startup.imports.learned_imports import delete_learned, import_file_paths, read_learned
from startup.logs.formatters import escape_controls
from vllm_cli.flags.param_types import ByteSize, CompileCacheType, Duration
from vllm_cli.terminal import align, printable

if TYPE_CHECKING:
    from startup.vllm.fork.preload_profile import PreloadProfile

_UNITS: Final = (("day", 86400), ("hour", 3600), ("minute", 60))
_MOST_EXAMINED: Final = 1_000_000
"""Archives of a location that `prune` considers."""
_HEAD: Final = ("MODEL", "VLLM", "TORCH", "SIZE", "COMPILED IN", "LAST USE", "HERE")
_HEAD_OF_PROFILES: Final = ("VLLM", "ARCHITECTURE", "MODULES", "STARTS", "FLAGS", "STATE")


class _Kept(NamedTuple):
    """A compiled model of this machine or of a location."""

    archive: str
    """Its name in a location."""
    num_bytes: int
    used_s: float
    """When a start has used it last, in seconds since 1970."""
    record: CompiledModel | None = None
    location: Location | None = None
    """None for this machine."""
    problem: str = ""
    """Why it cannot be loaded here."""

    @property
    def age_s(self) -> float:
        """0 if the last use is in the future: a clock was changed."""
        return max(datetime.now(UTC).timestamp() - self.used_s, 0.0)

    def remove(self) -> None:
        """Raises OSError if it is still there."""
        if self.location is not None:
            self.location.remove(self.archive)
        elif self.record is not None:
            local.remove(self.record)
            if local.is_installed(self.record):
                raise OSError(f"{self.record.key} in {local.compiled_folder()} cannot be removed: check permissions")

    def to_fields(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("model", "key", "versions", "compile_s", "created_at")
        return {
            "location": self.location and self.location.address,
            "archive": self.archive,
            **{name: getattr(self.record, name, None) for name in names},
            "num_bytes": self.num_bytes,
            "age_s": round(self.age_s, 3),
            "problem": self.problem,
        }


@click.group("caches", invoke_without_command=True)
@click.option(
    "--compile-cache", "option", type=CompileCacheType(), metavar="LOCATION", show_default="VCLI_COMPILE_CACHE",
    help="Also list the compiled models of this folder or object store, at most 200.",
)  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object, with all modules of the profiles.")
@click.pass_context
def caches(ctx: click.Context, *, option: CompileCacheOption | None, is_json: bool) -> None:
    """List what is kept between starts of vLLM: compiled models, preload profiles and the import file.

    HERE compares versions and hardware with those that a compiled model is for. It does not know the flags
    and variables of a start: the start's log says whether it has compiled, and why. LAST USE of an object in
    a store is when it was added.

    A preload profile has the modules that vLLM's processes had imported when they were ready; the next start
    of the same kind (version, architecture, flags that matter) imports them once for all processes. The
    import file has the bytecode of all modules that starts of this Python environment import.

    \b
    Examples:
      vllm-cli caches
      vllm-cli caches --compile-cache s3://bucket/compiled
      vllm-cli caches --json | jq '.preload_profiles[0].engine_modules'
      vllm-cli caches prune --older 30d --keep 5GiB

    Exit codes: 0 done; 1 LOCATION cannot be used; 2 usage.
    """
    if ctx.invoked_subcommand is not None:
        if option is not None or is_json:
            raise click.UsageError(f"give options after `{ctx.invoked_subcommand}`.")
        return
    address = (option or CompileCacheOption.of(env.VCLI_COMPILE_CACHE.get() or "")).location
    models: dict[str | None, list[_Kept]] = {None: list(_local_models())}
    failure = None
    if address is not None:
        try:
            models[address] = list(_stored_models(address))
        except LocationError as err:
            failure = str(err)
    click.echo(_to_json(models) if is_json else "\n\n".join("\n".join(part) for part in _sections(models)))
    if failure is not None:
        raise click.ClickException(failure)


@caches.command("prune")
@click.option("--older", "older_s", type=Duration(), metavar="AGE", help="Remove what was not used for so long: 30d.")
@click.option(
    "--keep", "keep_bytes", type=ByteSize(), metavar="SIZE",
    help="Remove what was used longest ago until the rest has at most this size: 5GiB.",
)  # fmt: skip
@click.option(
    "--compile-cache", "option", type=CompileCacheType(), metavar="LOCATION",
    help="Apply --older and --keep to this folder or object store, too, by itself.",
)  # fmt: skip
@click.option(
    "--all", "is_all", is_flag=True,
    help="Remove all that this machine keeps: compiled models, those without a record, profiles, import file.",
)  # fmt: skip
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only show what would be removed.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object.")
def prune(  # noqa: PLR0913 - one argument per option
    *,
    older_s: float | None,
    keep_bytes: int | None,
    option: CompileCacheOption | None,
    is_all: bool,
    is_dry_run: bool,
    is_json: bool,
) -> None:
    """Remove compiled models by age and size, or all that is kept between starts.

    Servers that are ready are not affected. After --all, the next start imports a built-in list, compiles,
    and writes everything anew; preloading that was disabled after a failure is enabled again.
    VCLI_COMPILE_CACHE has no effect.

    \b
    Examples:
      vllm-cli caches prune --older 30d --keep 5GiB
      vllm-cli caches prune --older 14d --compile-cache /mnt/compiled --dry-run
      vllm-cli caches prune --all

    Exit codes: 0 done; 1 LOCATION cannot be used, or something cannot be removed; 2 usage.
    """
    has_limit = older_s is not None or keep_bytes is not None
    if not has_limit and not is_all:
        raise click.UsageError("give --older, --keep or --all.")
    if option is not None and (option.location is None or not has_limit):
        raise click.UsageError("--compile-cache needs a LOCATION, and --older or --keep.")
    try:
        here = list(_local_models())
        chosen = here if is_all else _choose(here, older_s, keep_bytes)
        if option is not None and option.location is not None:
            chosen = [*chosen, *_choose(_archives(option.location, _MOST_EXAMINED), older_s, keep_bytes)]
        others = _others(here) if is_all else {}
        if not is_dry_run:
            _remove(chosen, and_others=is_all)
    except OSError as err:
        raise click.ClickException(str(err)) from err
    if is_json:
        fields = {"is_dry_run": is_dry_run, "compiled_models": [model.to_fields() for model in chosen]}
        click.echo(json.dumps({**fields, "others": others}, indent=2))
    else:
        click.echo("\n".join(_describe_removed(chosen, others, is_dry_run=is_dry_run)))


def _local_models() -> Iterator[_Kept]:
    """Those of this machine that have a record."""
    why_not_here = _WhyNotHere()
    for record in local.read_records():
        problem = why_not_here(record) if local.is_installed(record) else "its files are missing"
        with suppress(FileNotFoundError):  # removed meanwhile
            used_s = local.last_use_s(record)
            yield _Kept(record.archive_name, local.num_bytes(record), used_s, record, problem=problem)


def _stored_models(address: str) -> Iterator[_Kept]:
    """Those of a location, with their records; raises LocationError."""
    why_not_here = _WhyNotHere()
    for model in _archives(address, MOST_LISTED):
        assert model.location is not None
        try:
            with model.location.open(model.archive) as file:
                record = read_record(file)
        except (ArchiveError, LocationError) as err:
            yield model._replace(problem=str(err))
            continue
        yield model._replace(record=record, problem=why_not_here(record))


def _archives(address: str, most: int) -> Iterator[_Kept]:
    """Those of a location, without their records; raises LocationError."""
    location = open_location(address)
    for stored in location.list(most=most):
        yield _Kept(stored.name, stored.size, stored.modified_s, location=location)


class _WhyNotHere:
    """Compares records with the versions and the hardware of this machine."""

    def __init__(self) -> None:
        from startup.vllm.installed import find_vllm
        from startup.vllm.launch.compile_cache import present_versions  # noqa: PLC0415

        vllm = find_vllm()
        self._versions = None if vllm is None else present_versions(vllm)
        self._hardware = Hardware.present()

    def __call__(self, record: CompiledModel) -> str:
        """Empty if they are the same."""
        if self._versions is None:
            return "vLLM is not installed here"
        changes = other_place(record, self._versions, self._hardware)
        return "; ".join(f"{each.name} {each.before or 'none'}, here {each.now or 'none'}" for each in changes)


def _choose(models: Iterable[_Kept], older_s: float | None, keep_bytes: int | None) -> list[_Kept]:
    """What the limits remove, the one used longest ago first."""
    ordered = sorted(models, key=lambda model: model.used_s)
    total, chosen = sum(model.num_bytes for model in ordered), []
    for model in ordered:
        if (older_s is not None and model.age_s > older_s) or (keep_bytes is not None and total > keep_bytes):
            total -= model.num_bytes
            chosen.append(model)
    return chosen


def _others(models: Iterable[_Kept]) -> dict[str, int]:
    """The sizes of what this machine keeps besides these models."""
    from startup.vllm.fork.preload_profile import profiles_folder

    files = {
        "preload profiles": list(profiles_folder().glob("*.json")),
        "import file": [path for path in import_file_paths()[:1] if path.exists()],
    }
    return {
        "compiled without a record": _num_unrecorded_bytes(models),
        **{name: sum(path.stat().st_size for path in paths) for name, paths in files.items()},
    }


def _num_unrecorded_bytes(models: Iterable[_Kept]) -> int:
    return max(local.num_bytes_of_all() - sum(model.num_bytes for model in models), 0)


def _remove(models: Iterable[_Kept], *, and_others: bool) -> None:
    """Raises OSError if something is still there."""
    from startup.vllm.fork.preload_profile import delete_all_profiles

    for model in models:
        model.remove()
    if and_others:
        delete_all_profiles()
        delete_learned()
        local.remove_all()
        if local.num_bytes_of_all():
            raise OSError(f"not all of {local.compiled_folder()} can be removed: check permissions")


def _to_json(models: Mapping[str | None, list[_Kept]]) -> str:
    from startup.vllm.fork.preload_profile import load_all_profiles

    learned = read_learned()
    fields = {
        "compiled_models": [model.to_fields() for found in models.values() for model in found],
        "unrecorded": {"keys": sorted(local.unrecorded_keys()), "num_bytes": _num_unrecorded_bytes(models[None])},
        "preload_profiles": [{"key": each.kind.key, **asdict(each)} for each in load_all_profiles()],
        "import_file": None if learned is None else {**learned._asdict(), "path": str(learned.path)},
    }
    return json.dumps(fields, indent=2)


def _sections(models: Mapping[str | None, list[_Kept]]) -> Iterator[list[str]]:
    """The lines of each part."""
    from startup.vllm.fork.preload_profile import load_all_profiles, profiles_folder

    for address, found in models.items():
        place = escape_controls(address or str(local.compiled_folder()))
        if not found:
            yield [f"No compiled model is in {place}."]
            continue
        rows = [_row(model) for model in sorted(found, key=lambda model: model.age_s)]
        size = format_bytes(sum(model.num_bytes for model in found))
        yield [f"Compiled models in {place}: {len(found)}, {size}", *align([_HEAD, *rows])]
    if num_bytes := _num_unrecorded_bytes(models[None]):
        keys = len(local.unrecorded_keys())
        size = format_bytes(num_bytes)
        yield [f"Without a record, by starts without this program: {keys} compiled models, {size} with other files"]
    if profiles := load_all_profiles():
        rows = [_profile_row(profile) for profile in profiles]
        yield [f"Preload profiles in {profiles_folder()}: {len(rows)}", *align([_HEAD_OF_PROFILES, *rows])]
    else:
        yield [f"No preload profile is in {profiles_folder()}; the first start uses the built-in list."]
    if (learned := read_learned()) is not None:
        size = format_bytes(learned.num_bytes)
        yield [f"Import file {learned.path}: bytecode of {learned.num_modules} modules, {size}"]


def _row(model: _Kept) -> tuple[str, ...]:
    record = model.record
    name, versions, compile_s = (
        (model.archive, {}, "-") if record is None else (record.model, record.versions, f"{record.compile_s:.1f} s")
    )
    shown = (versions.get(package, "-") for package in ("vllm", "torch"))
    row = (name, *shown, format_bytes(model.num_bytes), compile_s, _in_words(model.age_s), model.problem or "fits")
    return printable(row)


def _profile_row(profile: "PreloadProfile") -> tuple[str, ...]:
    kind = profile.kind
    num_modules = len(profile.engine_modules) + len(profile.api_modules)
    state = f"disabled: {profile.disabled_reason}" if profile.disabled_reason else "used"
    if profile.failed:
        state = f"{state}, without {len(profile.failed)} that cannot be imported"
    flags = " ".join(kind.flags) or "(none that matter)"
    return printable(
        (kind.version, kind.architecture or "any", str(num_modules), str(profile.num_starts), flags, state)
    )


def _describe_removed(models: Iterable[_Kept], others: Mapping[str, int], *, is_dry_run: bool) -> Iterator[str]:
    rows = [
        (
            model.record.model if model.record else model.archive,
            format_bytes(model.num_bytes),
            f"used {_in_words(model.age_s)}",
            model.location.address if model.location else "",
        )
        for model in models
    ]
    rows += [(name, format_bytes(num_bytes), "", "") for name, num_bytes in others.items() if num_bytes]
    total = sum(model.num_bytes for model in models) + sum(others.values())
    verb = "Would remove" if is_dry_run else "Removed"
    yield f"{verb} {format_bytes(total)}:" if rows else f"{verb} nothing."
    yield from (f"  {line}" for line in align([printable(row) for row in rows]))


def _in_words(age_s: float) -> str:
    for unit, length_s in _UNITS:
        if count := int(age_s // length_s):
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
