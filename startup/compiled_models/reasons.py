"""Explains why a start compiles its model, by the values that differ from the nearest compiled model."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from startup.compiled_models.record import CompiledModel, Hardware

FactorKind = Literal["variables", "flags", "model", "versions", "hardware", "sources", "files", "unknown"]

ENVIRONMENT: Final = "environment"
_WHOLE: Final = "hf_config"
_TEXT: Final = "hf_text_config"
"""The name under which vLLM hashes the configuration again if the model has no images."""
_MODEL_FACTORS: Final = (_WHOLE, _TEXT, "hf_image_processor_config", "model_arch_config")
_SWITCHES: Final = {"VLLM_DISABLE_COMPILE_CACHE": True, "VLLM_USE_AOT_COMPILE": False}
"""Variable -> the value that switches vLLM's cache off. The first variable also sets the second's default."""
_PER_CONTAINER: Final = re.compile(r"(^|_)(IP|HOST|HOSTNAME|ADDR|ADDRESS|PORT|POD|NODE|URL|UUID|ID)(_|$)")
"""Matches names of variables whose values may differ between containers."""
_ADDRESS: Final = re.compile(r"\d{1,3}(\.\d{1,3}){3}|[0-9a-f]*:[0-9a-f:]+:[0-9a-f]+|.+-[0-9a-z]{5,10}-[0-9a-z]{5}")
"""Matches network addresses, and names that Kubernetes gives to pods."""
_LONGEST: Final = 60
_MOST_NAMED: Final = 4


class Change(NamedTuple):
    """A factor of vLLM's hash, that is a hashed value, that differs between two compiled models."""

    kind: FactorKind
    name: str
    before: str
    """The factor's value in the earlier compiled model. Empty if the factor had no value."""
    now: str

    def __str__(self) -> str:
        return f"{self.name} was {self.before or 'not set'}, is {self.now or 'not set'}"


@dataclass(frozen=True)
class Reason:
    """Why a model is compiled."""

    text: str
    """A clause that continues a sentence after `because`."""
    changes: tuple[Change, ...] = ()
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text

    def to_fields(self) -> dict[str, Any]:
        return {"reason": self.text, "remedy": self.remedy, "changes": [change._asdict() for change in self.changes]}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The properties that a compiled model must have so that this start can load it."""

    digest: str
    """The digest of all factors (`startup.compiled_models.vllm_hooks.HashedFactors`)."""
    factors: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    hardware: Hardware


def why_no_fit(wanted: Wanted, record: CompiledModel) -> Reason | None:
    """Why a start cannot load the model of this record. None if it can, apart from the model's files."""
    if changes := tuple(_changes(wanted, record)):
        return Reason(_describe(changes, record), changes, _remedy(changes))
    if wanted.digest not in (record.digest, record.early_digest):
        return Reason(f"an unknown value that vLLM hashes differs from {_name(record)}")
    return None


def explain(wanted: Wanted, records: Iterable[CompiledModel], root: Path) -> Reason:
    """Why none of this model's records fits, according to the record that differs least.

    `records` has the newest record first. `root` is vLLM's cache folder.
    """
    if (switch := _switched_off(wanted)) is not None:
        return switch
    reasons = [reason for record in records if (reason := why_no_fit(wanted, record)) is not None]
    if not reasons:
        return Reason(f"{root} has no compiled model for it yet (VLLM_CACHE_ROOT, by default ~/.cache/vllm)")
    return min(reasons, key=_distance)


def changed_sources(record: CompiledModel) -> tuple[Change, ...]:
    """The traced sources that have changed since the compilation, except modules that no longer exist."""
    changes = []
    for module, digest in record.sources.items():
        path = _source_of(module)
        if path is not None and (now := sha256(path.read_bytes()).hexdigest()) != digest:
            changes.append(Change("sources", str(path), f"SHA-256 {digest[:12]}", f"SHA-256 {now[:12]}"))
    return tuple(changes)


def why_not_loaded(record: CompiledModel, error: str, damaged: str | None) -> Reason:
    """Why vLLM could not load the files of a record that fits.

    `error` is vLLM's own message. `damaged` is a file that has changed since it was recorded.
    """
    if changes := changed_sources(record):
        return Reason(_describe(changes, record), changes)
    if damaged is not None:
        change = Change("files", damaged, "as it was written", "missing or damaged")
        return Reason(f"a file of the cache is damaged: {damaged}", (change,))
    return Reason(f"vLLM could not load {_name(record)}: {error or 'it gave no reason'}")


def _name(record: CompiledModel) -> str:
    return f"the compiled model of {record.created_at}"


def _distance(reason: Reason) -> tuple[int, ...]:
    """A sort key for how much a record differs. Versions count most, then hardware, then the model."""
    kinds = [change.kind for change in reason.changes]
    return (kinds.count("versions"), kinds.count("hardware"), kinds.count("model"), len(kinds))


def _describe(changes: tuple[Change, ...], record: CompiledModel) -> str:
    named = "; ".join(map(str, changes[:_MOST_NAMED]))
    more = f"; and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
    return f"{named}{more} (compared with {_name(record)})"


def _remedy(changes: tuple[Change, ...]) -> str:
    names = [change.name for change in changes if change.kind == "variables" and _is_per_container(change)]
    if not names:
        return ""
    return f"vLLM hashes {', '.join(names)}: give it the same value in every container, or unset it"


def _is_per_container(change: Change) -> bool:
    is_named_so = _PER_CONTAINER.search(change.name) is not None
    return is_named_so or any(_ADDRESS.fullmatch(value.strip("'\"")) for value in (change.before, change.now))


def _switched_off(wanted: Wanted) -> Reason | None:
    variables = wanted.factors.get(ENVIRONMENT, {})
    for name, value in _SWITCHES.items():
        if variables.get(name) is value:
            change = Change("variables", name, _shown(not value), _shown(value))
            return Reason(f"{name} switches vLLM's cache of compiled models off", (change,), f"unset {name}")
    return None


def other_place(record: CompiledModel, versions: Mapping[str, str], hardware: Hardware) -> Iterator[Change]:
    """Yields the versions and the hardware that have changed since the compilation."""
    yield from _compare("versions", record.versions, versions)
    before, now = asdict(record.hardware), asdict(hardware)
    sets = set(before.pop("instruction_sets")), set(now.pop("instruction_sets"))
    if sets[0] != sets[1]:
        lists = (" ".join(sorted(some - other)[:_MOST_NAMED]) for some, other in (sets, sets[::-1]))
        yield Change("hardware", "instruction sets", *(f"with {text}" if text else "without these" for text in lists))
    yield from _compare("hardware", before, now)


def _changes(wanted: Wanted, record: CompiledModel) -> Iterator[Change]:
    yield from other_place(record, wanted.versions, wanted.hardware)
    if record.versions.get("vllm") != wanted.versions.get("vllm"):
        return  # another release hashes other things
    for group in sorted({*record.factors, *wanted.factors}):
        yield from _compare_group(group, record.factors.get(group, {}), wanted.factors.get(group, {}))


def _compare_group(group: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    if group == ENVIRONMENT:
        yield from _compare("variables", before, now)
        return
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new or (name == _TEXT and (old, new) == (before.get(_WHOLE), now.get(_WHOLE))):
            continue
        kind: FactorKind = "model" if name in _MODEL_FACTORS else "flags" if name else "unknown"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _compare(kind, old, new, f"{group}.{name}.")
        elif not _is_hash(old) or not _is_hash(new):  # else the hashed values themselves are compared
            yield Change(kind, f"{group}.{name}" if name else group, _shown(old), _shown(new))


def _compare(kind: FactorKind, before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[Change]:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield Change(kind, f"{prefix}{name}", _shown(before.get(name)), _shown(now.get(name)))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,}", value) is not None


def _shown(value: Any) -> str:
    """The value as text in one line. Empty for None."""
    if value is None:
        return ""
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _source_of(module: str) -> Path | None:
    """The source file of a module. The module need not be imported. None if there is no source file."""
    package, *parts = module.split(".")
    imported = getattr(sys.modules.get(package), "__path__", None)
    folder = imported or getattr(find_spec(package), "submodule_search_locations", None)
    if not folder:
        return None
    path = Path(next(iter(folder))).joinpath(*parts)
    found = (path.with_suffix(".py") if parts else path, path / "__init__.py")
    return next((file for file in found if file.is_file()), None)
