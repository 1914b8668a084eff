"""Explains why a start has compiled its model: the first value that differs from the nearest one."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from startup.compiled_models.record import CompiledModel, Hardware

FactorKind = Literal["variables", "flags", "model", "versions", "hardware", "unknown"]

ENVIRONMENT: Final = "environment"
_WHOLE: Final = "hf_config"
_TEXT: Final = "hf_text_config"
"""The name under which vLLM hashes the configuration again if the model has no images."""
_MODEL_FACTORS: Final = (_WHOLE, _TEXT, "hf_image_processor_config", "model_arch_config")
_SWITCHES: Final = {"VLLM_DISABLE_COMPILE_CACHE": True, "VLLM_USE_AOT_COMPILE": False}
"""Variable -> the value that switches vLLM's cache off. The first variable also sets the second's default."""
_HASH: Final = re.compile(r"[0-9a-f]{32,}")
"""Matches a value that is a hash of other values, which are compared themselves."""
_LONGEST: Final = 60


class Change(NamedTuple):
    """A factor of vLLM's hash, that is a hashed value, that differs between two compiled models."""

    kind: FactorKind
    name: str
    before: str
    """The factor's value in the earlier compiled model. Empty if the factor had no value."""
    now: str

    def __str__(self) -> str:
        if self is _UNKNOWN:
            return self.name
        return f"{self.name} was {self.before or 'not set'}, is {self.now or 'not set'}"


_UNKNOWN: Final = Change("unknown", "an unknown value that vLLM hashes differs", "", "")


class Reason(NamedTuple):
    """Why a model was compiled."""

    text: str
    """A clause that continues a sentence after `because`."""
    change: Change | None = None

    def to_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"reason": self.text}
        if self.change:
            fields["difference"] = self.change._asdict()
        return fields


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The properties that a compiled model must have so that this start can load it."""

    digest: str
    """The digest of all factors (`startup.compiled_models.vllm_hooks.HashedFactors`)."""
    factors: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    hardware: Hardware


def find_change(wanted: Wanted, record: CompiledModel) -> Change | None:
    """The first value that prevents a start from loading the record's model. None if only files may lack."""
    if (change := next(_changes(wanted, record), None)) is not None:
        return change
    return None if wanted.digest in (record.digest, record.early_digest) else _UNKNOWN


def explain(wanted: Wanted, records: Sequence[CompiledModel], root: Path) -> Reason:
    """Why none of this model's records fits: the first difference from the record that differs least.

    `records` has the newest record first. `root` is vLLM's cache folder.
    """
    variables = wanted.factors.get(ENVIRONMENT, {})
    for switch, off in _SWITCHES.items():
        if variables.get(switch) is off:
            return Reason(f"{switch} switches vLLM's cache of compiled models off")
    if not records:
        return Reason(f"{root} has no compiled model for it yet (VLLM_CACHE_ROOT, by default ~/.cache/vllm)")
    nearest = min(records, key=lambda record: sum(1 for _ in _changes(wanted, record)))
    change = find_change(wanted, nearest)
    return Reason(f"{change} (compared with the compiled model of {nearest.created_at})", change)


def has_changed_sources(record: CompiledModel) -> bool:
    """Whether a traced source has changed since the compilation. Missing modules do not count."""
    for module, digest in record.sources.items():
        path = _source_of(module)
        if path is not None and sha256(path.read_bytes()).hexdigest() != digest:
            return True
    return False


def _changes(wanted: Wanted, record: CompiledModel) -> Iterator[Change]:
    """Yields the values that differ. Skips the factors of another release, which hashes other things."""
    before, now = _place(record), _place(wanted)
    if record.versions.get("vllm") == wanted.versions.get("vllm"):
        before |= _factors(record.factors)
        now |= _factors(wanted.factors)
    for kind, name in dict.fromkeys((*before, *now)):
        old, new = (values.get((kind, name)) for values in (before, now))
        if old != new and not (_is_hash(old) and _is_hash(new)):
            yield Change(kind, name, _shown(old), _shown(new))


def _place(owner: Wanted | CompiledModel) -> dict[tuple[FactorKind, str], Any]:
    """(kind, name) -> value, of the versions and the hardware."""
    hardware = asdict(owner.hardware)
    sets = hardware.pop("instruction_sets")
    found: dict[tuple[FactorKind, str], Any] = {}
    for name, value in owner.versions.items():
        found["versions", name] = value
    for name, value in hardware.items():
        found["hardware", name] = value
    for name in sorted(sets):
        found["hardware", f"instruction set {name}"] = "there"
    return found


def _factors(factors: Mapping[str, Mapping[str, Any]]) -> dict[tuple[FactorKind, str], Any]:
    """(kind, name) -> value, of what vLLM hashes. A model's configuration has a value for each member."""
    found: dict[tuple[FactorKind, str], Any] = {}
    for group, values in sorted(factors.items()):
        for name, value in sorted(values.items()):
            if group == ENVIRONMENT:
                found["variables", name] = value
                continue
            kind: FactorKind = "model" if name in _MODEL_FACTORS else "flags" if name else "unknown"
            full_name = f"{group}.{name}" if name else group
            if not isinstance(value, Mapping):
                found[kind, full_name] = value
            elif name != _TEXT or value != values.get(_WHOLE):
                found |= {(kind, f"{full_name}.{inner}"): each for inner, each in value.items()}
    return found


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _shown(value: Any) -> str:
    """The value as text in one line. Empty for None."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    text = " ".join(text.split())
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
