"""The facts about the installed vLLM: read from its sources once, later from a file.

The record is valid while the files that were read, the readers in this folder, and the folders that packages
are installed in are the same.
"""

import json
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from base.machine.file_stamps import are_unchanged, store_stamps
from base.machine.files import write_whole
from startup.caches import layers
from startup.hooks.sources import Sources, installed_package, packages_beside
from startup.vllm.facts.vllm_facts import VllmFacts, plugin_folders, read_plugins
from startup.vllm.installed import InstalledVllm


def read_facts(vllm: InstalledVllm) -> VllmFacts:
    """The facts about an installed vLLM."""
    import msgspec

    folders = plugin_folders()
    paths = layers(f"vllm-facts/{_key(vllm)}.json")
    for path in paths:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, msgspec.MsgspecError):
            content = msgspec.json.decode(path.read_bytes())
            if content["folders"] == folders and are_unchanged(content["files"]):
                return msgspec.convert(content["facts"], VllmFacts)
    sources = Sources(installed_package)
    facts = read_sources(sources, folders)
    files = [*map(str, (*sources.looked_at, *Path(__file__).parent.glob("*.py"))), *folders]
    with suppress(OSError):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        content = {"folders": folders, "files": store_stamps(files), "facts": facts}
        write_whole(paths[0], json.dumps(content, separators=(",", ":")))
    return facts


def read_facts_in(folder: Path) -> VllmFacts:
    """The facts about a vLLM in a folder such as the site-packages of another environment; never recorded."""
    return read_sources(Sources(packages_beside(folder)), [str(folder)])


def read_sources(sources: Sources, folders: list[str]) -> VllmFacts:
    """Reads the sources of vLLM and the lists of the packages in the folders: a tenth of a second."""
    from startup.vllm.facts.definitions import Definitions
    from startup.vllm.facts.flags import read_flags

    flags, is_complete = read_flags(Definitions(sources))
    return VllmFacts(flags, is_complete and len(flags) > 0, read_plugins(folders))


def _key(vllm: InstalledVllm) -> str:
    """The name of the file for this installation and program."""
    return sha256(repr((sys.version, str(vllm.folder), vllm.version)).encode()).hexdigest()[:16]
