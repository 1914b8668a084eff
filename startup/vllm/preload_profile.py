"""What earlier starts of vLLM have taught: which modules its processes import, and what must be in place before.

One file per kind of start in the cache folder. Without one, a list that this package ships serves the first start.
"""

import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from envs.registry import env
from startup.timeline.whole_file import write_whole
from startup.vllm.installed import InstalledVllm
from startup.vllm.journal import StartRecordings

_FORMAT: Final = 1
_API_PROCESSES: Final = ("MainProcess", "ApiServer")
_RELEVANT_FLAGS: Final = frozenset(
    {
        "--enforce-eager", "--quantization", "-q", "--runner", "--convert", "--task", "--enable-lora", "--dtype",
        "--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp",
        "--api-server-count", "-asc", "--headless", "--distributed-executor-backend", "--speculative-config",
        "--attention-backend", "--optimization-level", "--compilation-config", "-cc", "--load-format",
        "--kv-transfer-config", "--model-impl", "--enable-expert-parallel", "-ep", "--trust-remote-code",
    }
)  # fmt: skip
"""Flags that change what is imported."""

_SWITCHES: Final = frozenset(
    {"--enforce-eager", "--enable-lora", "--headless", "--enable-expert-parallel", "-ep", "--trust-remote-code"}
)
"""Those that no value follows."""


@dataclass(frozen=True)
class StartKind:
    """Starts of one kind import the same modules."""

    version: str
    architecture: str
    flags: tuple[str, ...]
    python: str = platform.python_version()
    machine: str = platform.machine()
    prefix: str = sys.prefix

    @classmethod
    def of(cls, vllm: InstalledVllm, words: Iterable[str], model: Path | None) -> "StartKind":
        """The kind of a start with these words of the command line, of a model in this folder."""
        return cls(vllm.version, _architecture(model), tuple(_relevant(words)))

    @property
    def key(self) -> str:
        """Names the kind's file."""
        return sha256(json.dumps([_FORMAT, asdict(self)]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PreloadProfile:
    """What a start of some kind had imported when it was ready."""

    kind: StartKind
    engine_modules: tuple[str, ...] = ()
    """Of engine and worker processes, in order of import."""
    api_modules: tuple[str, ...] = ()
    """Of the API server, beyond what its command line imports."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What vLLM sets for its children and libraries read as they are loaded."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Modules that could not be preloaded, and are not tried again."""
    compile_cache: Mapping[str, Any] = field(default_factory=dict)
    """What became of torch.compile's caches in the last start."""
    num_starts: int = 0
    disabled_reason: str | None = None
    """Why starts of this kind run vLLM without preloading: an earlier one failed in code of this package."""

    def updated_with(self, recordings: StartRecordings) -> "PreloadProfile":
        """What is known after one more start: modules it imported late come behind those that are known."""
        engine = list(self.engine_modules)
        api = list(self.api_modules)
        for process, names in recordings.modules.items():
            (api if process.startswith(_API_PROCESSES) else engine).extend(names)
        failed = {**self.failed, **recordings.failed}
        learnt = {n: v for n, v in recordings.environment.items() if v}
        return replace(
            self,
            engine_modules=tuple(name for name in dict.fromkeys(engine) if name not in failed),
            api_modules=tuple(dict.fromkeys(api)),
            environment={**self.environment, **learnt},
            failed=failed,
            compile_cache=recordings.compile_cache,
            num_starts=self.num_starts + 1,
        )

    def to_fields(self) -> dict[str, Any]:
        """The profile as JSON values; `disabled_reason` is called `distrust` in files."""
        fields = asdict(self)
        fields["distrust"] = fields.pop("disabled_reason")
        return fields

    def save(self) -> None:
        """Keeps it for the next start; where nothing can be written, it is not kept."""
        with suppress(OSError):
            profiles_folder().mkdir(parents=True, exist_ok=True)
            write_whole(_path(self.kind), json.dumps(self.to_fields(), indent=1))


def load_profile(kind: StartKind) -> PreloadProfile:
    """What is known of this kind of start; an empty profile where that is nothing."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return _read(_path(kind))
    return PreloadProfile(kind)


def load_all_profiles() -> list[PreloadProfile]:
    """What is known of any kind of start."""
    profiles = []
    for path in sorted(profiles_folder().glob("*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            profiles.append(_read(path))
    return profiles


def delete_all_profiles() -> int:
    """Removes what was learnt; returns how many kinds of start that were."""
    paths = list(profiles_folder().glob("*.json"))
    for path in paths:
        path.unlink(missing_ok=True)
    return len(paths)


def profiles_folder() -> Path:
    """Where it is kept."""
    return env.VLLM_CACHE_ROOT.get() / "vllm_cli" / "preload"


def _path(kind: StartKind) -> Path:
    return profiles_folder() / f"{kind.key}.json"


def _read(path: Path) -> PreloadProfile:
    content: dict[str, Any] = json.loads(path.read_bytes())
    for name in ("engine_modules", "api_modules"):
        if not all(isinstance(module, str) for module in content[name]):
            raise ValueError(path)
        content[name] = tuple(content[name])
    kind = content.pop("kind")
    reason = content.pop("distrust", None)
    return PreloadProfile(StartKind(**{**kind, "flags": tuple(kind["flags"])}), disabled_reason=reason, **content)


def _relevant(words: Iterable[str]) -> Iterator[str]:
    """The relevant flags with their values, in a form that does not depend on how they were written."""
    is_value = False
    for word in words:
        if word.startswith("-"):
            flag, is_attached, attached = word.partition("=")
            flag = flag.replace("_", "-")
            is_relevant = flag.partition(".")[0] in _RELEVANT_FLAGS or flag.startswith("-O")
            is_value = is_relevant and not is_attached and flag not in _SWITCHES
            if is_relevant:
                yield flag
            if is_relevant and is_attached:
                yield attached
        elif is_value:
            yield word
            is_value = False


def _architecture(model: Path | None) -> str:
    """The model's class as its configuration names it, empty where that is not on disk."""
    if model is None:
        return ""
    with suppress(OSError, ValueError, TypeError, LookupError):
        return str(json.loads((model / "config.json").read_bytes())["architectures"][0])
    return ""
