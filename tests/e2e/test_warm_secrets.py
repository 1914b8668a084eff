"""Arguments and variables of a warm start are not in the memory of standby and template, nor in `ps`."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.http_answer import ask


def _writable_memory(pid: int) -> Iterator[bytes]:
    """What a process may have written; skips the test if that cannot be read."""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
                if found and "[v" not in line:
                    begin, end = (int(text, 16) for text in found.groups())
                    memory.seek(begin)
                    yield memory.read(end - begin) or b""
    except PermissionError:
        pytest.skip("the memory of other processes cannot be read")


def _contains(pid: int, secret: str) -> bool:
    return any(secret.encode() in part for part in _writable_memory(pid))


def test_secrets_of_a_start_are_only_in_its_own_processes(tiny_llama, standby):
    key, token = f"key-{uuid4().hex}", f"token-{uuid4().hex}"
    environment = {**standby.environment, "A_TOKEN": token}
    with ServerProcess([str(tiny_llama), "--api-key", key], environment=environment) as server:
        (forked,) = standby.servers()
        assert ask(f"{server.url}/v1/models").status == 401
        assert _contains(forked.pid, key), "the search does not work"
        assert _contains(forked.pid, token)
        for process in (psutil.Process(server.process.pid), forked, *forked.children(recursive=True)):
            with suppress(psutil.ZombieProcess):  # such as the prefetch, before it is reaped
                assert key not in " ".join(process.cmdline()), process
        for pid in (standby.template().pid, standby.process.pid):
            assert not _contains(pid, key)
            assert not _contains(pid, token)
    standby.wait_no_server()
    for pid in (standby.template().pid, standby.process.pid):
        assert not _contains(pid, key)
        assert not _contains(pid, token)
    assert key not in standby.log


def test_the_next_start_does_not_see_the_variables_of_the_last(tiny_llama, standby):
    with ServerProcess([str(tiny_llama), "--api-key", "of-the-first"], environment=standby.environment):
        pass
    with ServerProcess([str(tiny_llama)], environment=standby.environment) as server:
        assert ask(f"{server.url}/v1/models").status == 200
    with ServerProcess([str(tiny_llama)], environment={**standby.environment, "VLLM_API_KEY": "second"}) as server:
        assert ask(f"{server.url}/v1/models").status == 401
