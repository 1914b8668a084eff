"""Describes what starts of one kind learn, so that `--compile-cache` can share it between machines."""

from base.machine.file_stamps import read_stamp
from startup.compiled_models.compile_cache import present_versions
from startup.compiled_models.record import start_family
from startup.compiled_models.sharing_process import LearnedFiles
from startup.imports.learned_imports import import_file_paths, installation
from startup.storage.caches import cache_folder, find_baked
from startup.vllm.fork.preload_profile import PreloadProfile, has_own_profile
from startup.vllm.patches.graphs.cuda_graphs import FOLDER
from startup.vllm_arguments.installed import InstalledVllm


def describe_learned(vllm: InstalledVllm, profile: PreloadProfile) -> LearnedFiles:
    """The learned files that fit this start, and whether they are here. Call it before heavy imports."""
    return LearnedFiles(
        family=start_family(present_versions(vllm), installation()),
        kind=profile.kind.key,
        is_known=profile.num_starts > 0,
        is_first=not has_own_profile(profile.kind),
        is_whole=find_baked().folder is None,
    )


def known_now(profile: PreloadProfile) -> object:
    """An object that differs once a start has learned modules, bytecode, or the memory of its graphs."""
    graphs = sorted(path.name for path in (cache_folder() / FOLDER).glob("*.json"))
    return read_stamp(import_file_paths()[0]), profile.engine_modules, profile.api_modules, graphs
