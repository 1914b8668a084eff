"""Describes what starts of one kind learn, so that `--compile-cache` can share it between machines."""

from base.machine.file_stamps import read_stamp
from startup.compiled_models.compile_cache import present_versions
from startup.compiled_models.record import start_family
from startup.compiled_models.sharing_process import LearnedFiles
from startup.imports.learned_imports import import_file_paths, installation
from startup.storage.caches import cache_folder, find_baked
from startup.vllm.patches.graphs.cuda_graphs import FOLDER
from startup.vllm.start_kind import StartKind, earlier_start, has_started_here
from startup.vllm_arguments.installed import InstalledVllm


def describe_learned(vllm: InstalledVllm, kind: StartKind) -> LearnedFiles:
    """The learned files that fit this start, and whether they are here. Call it before heavy imports."""
    return LearnedFiles(
        family=start_family(present_versions(vllm), installation()),
        kind=kind.key,
        is_known=earlier_start(kind) is not None,
        is_first=not has_started_here(kind),
        is_whole=find_baked().folder is None,
    )


def known_now() -> object:
    """An object that differs once a start has learned bytecode, or the memory of its graphs."""
    graphs = sorted(path.name for path in (cache_folder() / FOLDER).glob("*.json"))
    return read_stamp(import_file_paths()[0]), graphs
