"""Compiles the kernels that vLLM needs, for a GPU's architecture and without a GPU, into an archive."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from base.machine.processors import usable_count
from startup.arguments.errors import InputError
from startup.compiled_models.compile_cache import present_versions
from startup.compiled_models.local import TRITON
from startup.compiled_models.location import open_location
from startup.compiled_models.record import Hardware, kernel_family
from startup.compiled_models.shared_files import add_files
from startup.compiled_models.sharing_process import SharingReport
from startup.errors import StartupError
from startup.kernels.compiling import CompileJob, compile_in_new_program
from startup.kernels.kernel_lists import read_traits, shipped_kernels
from startup.processes.helper import HelperEndedError
from startup.settings.serve_arguments import LauncherLine
from startup.vllm_arguments.installed import require_vllm
from startup.vllm_arguments.vllm_line import VllmLine

_ARCHITECTURE: Final = re.compile(r"(\d{1,2})\.(\d)[af]?(?:\+PTX)?", re.ASCII)
_SEPARATOR: Final = re.compile(r"[;, ]+")


class CompiledKernels(NamedTuple):
    """The kernels for one architecture."""

    architecture: str
    num_kernels: int
    archives: tuple[str, ...]
    """The archives that were added. Empty if the location had all kernels."""
    problems: tuple[str, ...]
    """Why kernels were not compiled. A start compiles these itself."""


def parse_architectures(text: str) -> tuple[str, ...]:
    """Splits a list in the form of TORCH_CUDA_ARCH_LIST, such as `8.0;9.0a+PTX`. Raises InputError."""
    found = []
    for each in filter(None, _SEPARATOR.split(text)):
        if (match := _ARCHITECTURE.fullmatch(each)) is None:
            form = "Give compute capabilities, such as 9.0 or 8.0;9.0"
            raise InputError(f"--gpu-arch {text!r}: {each!r} is not a compute capability. {form}.")
        found.append(f"{match[1]}.{match[2]}")
    if not found:
        raise InputError("--gpu-arch is empty. Give compute capabilities, such as 9.0 or 8.0;9.0.")
    return tuple(dict.fromkeys(found))


def compile_kernels(arguments: Sequence[str], architectures: Sequence[str], address: str) -> Iterator[CompiledKernels]:
    """Compiles the kernels of a start for each architecture, and adds them to a location.

    These are the kernels that this package lists for the installed release of vLLM.

    Raises:
        StartupError: there is no list for this release, no kernel can be compiled, or the location cannot be
            written to.
    """
    vllm = require_vllm()
    line = VllmLine.of(LauncherLine(arguments).engine_arguments)
    traits = read_traits(line.model_folder, line.value("--dtype"))
    fitting = (kernel.for_model(traits) for kernel in shipped_kernels(vllm.release))
    kernels = tuple(kernel for kernel in fitting if kernel is not None)
    if not kernels:
        raise StartupError(f"no kernels of vLLM {vllm.version} are known before a start on a GPU")
    for architecture in architectures:
        major, _, minor = architecture.partition(".")
        with TemporaryDirectory(prefix="vllm-cli-kernels-") as folder:
            job = CompileJob(
                kernels=kernels,
                capability=(int(major), int(minor)),
                folder=folder,
                num_processes=usable_count(),
            )
            try:
                report = compile_in_new_program(job)
            except (OSError, HelperEndedError) as err:
                raise StartupError(f"the kernels for {architecture} were not compiled: {err}") from err
            if not report.keys:
                raise StartupError(f"no kernel could be compiled for {architecture}: {min(report.problems.values())}")
            archives = _add(address, architecture, Path(folder))
        yield CompiledKernels(architecture, len(report.keys), archives, tuple(report.problems.values()))


def _add(address: str, architecture: str, folder: Path) -> tuple[str, ...]:
    versions = present_versions(require_vllm())
    family, _ = kernel_family(versions, Hardware.present(), (architecture,))
    files = {f"{TRITON}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
    report = SharingReport()
    try:
        add_files(open_location(address), family, files, report)
    except (OSError, ValueError) as err:
        raise StartupError(f"the kernels for {architecture} were not added: {err}") from err
    return tuple(report.archives)
