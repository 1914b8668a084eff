"""Checks what a start on several nodes needs: the address of the first node, and Ray."""

import encodings.idna  # noqa: F401 - else the thread imports the codec of host names
import errno
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from envs import foreign
from startup.preflight.report import Finding, warning
from startup.vllm.preflight.start import CheckedStart

_TIMEOUT_S: Final = 0.4
_RAY_ADDRESS: Final = "RAY_ADDRESS"
_HOST_AND_PORT: Final = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")
_UNREACHABLE: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
_REQUIREMENT: Final = re.compile(r"^Requires-Dist: ray(?:\[[^\]]*\])? *\(?>= *([\d.]+)", re.MULTILINE)
_VERSION: Final = re.compile(r"^Version: *([\d.]+)", re.MULTILINE)


class _Head(NamedTuple):
    """The node that all others connect to, as the words name it."""

    flag: str
    host: str
    port: int
    is_this_node: bool
    """Whether this node is to be it."""


class NodeChecks:
    """Begins to look for the other nodes when created; `findings` waits for the answers."""

    def __init__(self, start: CheckedStart) -> None:
        self._start = start
        self._searches = [(head, _Search(head)) for head in _heads(start)]
        address = _ray_address(start)
        self._ray = (address, _Search(address)) if address is not None else None

    def findings(self) -> Iterator[Finding]:
        """Warnings: another node may come up later, and names may be served by something else."""
        for head, search in self._searches:
            if problem := _head_problem(head, search.wait()):
                yield warning("nodes", f"{head.flag} {head.host}: {problem}")
        if self._ray is not None and (reached := self._ray[1].wait()).problem:
            address = self._ray[0]
            yield warning("ray", f"{_RAY_ADDRESS}={address.host}:{address.port}: {reached.problem}")
        yield from _ray_version_findings(self._start)


def _heads(start: CheckedStart) -> Iterator[_Head]:
    if start.number("--nnodes", 1) > 1:
        host = start.value("--master-addr") or "127.0.0.1"
        is_first = start.number("--node-rank", 0) == 0
        yield _Head("--master-addr", host, start.number("--master-port", 29501), is_this_node=is_first)
    if host := start.value("--data-parallel-address"):
        is_first = not start.has("--headless") and start.number("--data-parallel-rank", 0) == 0
        is_first = is_first and start.number("--data-parallel-start-rank", 0) == 0
        port = start.number("--data-parallel-rpc-port", 29550)
        yield _Head("--data-parallel-address", host, port, is_this_node=is_first)


def _ray_address(start: CheckedStart) -> _Head | None:
    found = _HOST_AND_PORT.fullmatch(foreign.text_of(_RAY_ADDRESS))
    if found is None or not _uses_ray(start):
        return None
    return _Head(_RAY_ADDRESS, found[1].strip("[]"), int(found[2]), is_this_node=False)


def _uses_ray(start: CheckedStart) -> bool:
    return "ray" in (start.value("--distributed-executor-backend"), start.value("--data-parallel-backend"))


class _Reached(NamedTuple):
    """What is known of an address."""

    addresses: tuple[str, ...] = ()
    problem: str = ""
    """Why it cannot be reached; a node that is there but does not listen yet is no problem."""


class _Search:
    """Resolves a name and connects to it in a thread with a deadline, which a resolver has not."""

    def __init__(self, head: _Head) -> None:
        self._head = head
        self._end_s = time.monotonic() + _TIMEOUT_S
        self._reached = _Reached(problem=f"no answer within {_TIMEOUT_S:g} s; check the name and the network")
        self._thread = threading.Thread(target=self._run, name="preflight-nodes", daemon=True)
        self._thread.start()

    def wait(self) -> _Reached:
        """What is known at the deadline; a search that hangs is abandoned."""
        self._thread.join(max(0.0, self._end_s - time.monotonic()))
        return self._reached

    def _run(self) -> None:
        try:
            found = socket.getaddrinfo(self._head.host, self._head.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            self._reached = _Reached(problem="this name is not known here; check it, or give an IP address")
            return
        addresses = tuple(str(address[0]) for *_, address in found)
        self._reached = _Reached(addresses, "" if self._head.is_this_node else _connection_problem(found[0]))


def _connection_problem(
    address: tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]],
) -> str:
    with socket.socket(address[0], socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(address[4])
        except TimeoutError:
            return f"no answer within {_TIMEOUT_S:g} s; check the address, the port and firewalls between the nodes"
        except OSError as err:
            if err.errno in _UNREACHABLE:
                return f"it cannot be reached from here ({(err.strerror or str(err)).lower()})"
    return ""


def _head_problem(head: _Head, reached: _Reached) -> str:
    if reached.problem:
        return reached.problem
    is_loopback = any(address.startswith("127.") or address == "::1" for address in reached.addresses)
    is_own = any(map(_is_own, reached.addresses))
    if head.is_this_node:
        if is_loopback:
            return "other nodes cannot reach this address; give one of this node that they can"
        if not is_own:
            return "no address of this node, which is the first one; right only if something forwards it to here"
    elif is_loopback or is_own:
        return "an address of this node, which is not the first one; give the address of the first node"
    return ""


def _is_own(address: str) -> bool:
    """Whether it can be bound here."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address.partition("%")[0], 0))
        return True
    return False


def _ray_version_findings(start: CheckedStart) -> Iterator[Finding]:
    """The version that the installed vLLM asks for, by the metadata of both packages."""
    if not _uses_ray(start):
        return
    spec = find_spec("ray")
    needed = _metadata_value(start.vllm.folder.parent, "vllm*", _REQUIREMENT)
    has = _metadata_value(Path(spec.origin).parent.parent, "ray-*", _VERSION) if spec and spec.origin else None
    if needed and has and _numbers(has) < _numbers(needed):
        yield warning("ray", f"Ray {has} is installed, and this vLLM asks for {needed} or newer: upgrade it")


def _metadata_value(site: Path, package: str, pattern: re.Pattern[str]) -> str | None:
    for path in site.glob(f"{package}.dist-info/METADATA"):
        with suppress(OSError, UnicodeDecodeError):
            if found := pattern.search(path.read_text(encoding="utf-8")):
                return found[1]
    return None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part]
