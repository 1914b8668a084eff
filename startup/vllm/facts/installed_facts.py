"""What the installed vLLM accepts: read from its sources once, later from a file; imports nothing of vLLM.

The record is valid while the files that were read, the readers in this folder, and the folders that packages
are installed in are the same.
"""

import json
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from base.machine.file_stamps import are_unchanged, store_stamps
from base.machine.files import write_whole
from startup.caches import layers
from startup.hooks.sources import Sources, installed_package
from startup.vllm.facts.plugins import plugin_folders
from startup.vllm.facts.vllm_facts import (
    Bounds,
    FlagFact,
    Plugin,
    QuantizationFacts,
    Registries,
    VariableFact,
    VllmFacts,
)
from startup.vllm.installed import InstalledVllm


def read_facts(vllm: InstalledVllm) -> VllmFacts:
    """The facts about an installed vLLM."""
    folders = plugin_folders()
    paths = layers(f"vllm-facts/{_key(vllm)}.json")
    for path in paths:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = json.loads(path.read_bytes())
            if content["folders"] == folders and are_unchanged(content["files"]):
                return _decode(content["facts"])
    from startup.vllm.facts.source_reader import read_sources

    sources = Sources(installed_package)
    facts = read_sources(sources, folders)
    files = [*map(str, (*sources.looked_at, *Path(__file__).parent.glob("*.py"))), *folders]
    with suppress(OSError):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        record = {"folders": folders, "files": store_stamps(files), "facts": facts._asdict()}
        write_whole(paths[0], json.dumps(record, separators=(",", ":")))
    return facts


def _key(vllm: InstalledVllm) -> str:
    """The name of the file for this installation and program."""
    return sha256(repr((sys.version, str(vllm.folder), vllm.version)).encode()).hexdigest()[:16]


def _decode(content: dict[str, Any]) -> VllmFacts:
    """The reverse of the tuples' JSON, which are lists."""
    return VllmFacts(
        flags=tuple(_decode_flag(*values) for values in content["flags"]),
        has_all_flags=content["has_all_flags"],
        variables=tuple(VariableFact(*values) for values in content["variables"]),
        registries=Registries(*content["registries"]),
        rules=tuple(content["rules"]),
        quantization=_decode_quantization(*content["quantization"]),
        installed_plugins=tuple(Plugin(*values) for values in content["installed_plugins"]),
    )


def _decode_quantization(
    deprecated: list[str], min_capabilities: dict[str, int], on_rocm: list[str]
) -> QuantizationFacts:
    return QuantizationFacts(tuple(deprecated), min_capabilities, tuple(on_rocm))


def _decode_flag(names: list[str], *others: Any) -> FlagFact:
    flag = FlagFact(tuple(names), *others)
    bounds = None if flag.bounds is None else Bounds(*flag.bounds)
    return flag._replace(opposites=tuple(flag.opposites), bounds=bounds)
