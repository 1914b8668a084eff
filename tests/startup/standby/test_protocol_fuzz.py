"""Messages arrive whole, random ones leave nothing, and a signal that is forwarded ends the start."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from startup.processes import messages
from tests.e2e.stop_point import StopPoint
from tests.support.cli import run_cli, run_python
from tests.support.ports import free_port
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import is_gone, wait_until

DEVNULL = Path(os.devnull)


@cache
def _interpreter() -> dict[str, str]:
    """The interpreter state of another process, because pytest may have changed this process."""
    code = (
        "import json; from startup.standby import front_process; print(json.dumps(front_process.interpreter_state()))"
    )
    return json.loads(run_python(code, check=True).stdout)


def _right_request() -> list[list[bytes]]:
    return [
        [b"vllm-cli", b"serve", b"--preflight-only"],
        [name + b"=" + value for name, value in os.environb.items()],
        [b"0", b"1", b"2"],
        [sys.executable.encode(), b"-m", b"vllm_cli", b"serve"],
        [os.fsencode(path) for path in sys.path],
        messages.pairs(_interpreter()),
        [b"C.UTF-8", b"strict 0", b"strict 0", b"backslashreplace 1"],
        [b"1"],
    ]


def _request(rng: random.Random) -> list[list[bytes]]:
    """A request in which some parts are wrong."""
    sections = _right_request()
    for _ in range(rng.randrange(4)):
        section = rng.choice(sections)
        match rng.randrange(6):
            case 0:
                section.clear()
            case 1:
                section.append(rng.randbytes(rng.randrange(40)).replace(b"\0", b"x"))
            case 2:
                section.extend([b"%d" % rng.choice([-1, 3, 499, 501, 1 << 40])] * rng.randrange(1, 300))
            case 3:
                sections.append([b"more"])
            case 4:
                sections.remove(section)
            case _:
                rng.shuffle(section)
        if not sections:
            sections.append([])
    return sections


def _answer_without_interpreter(standby: StandbyProcess) -> bytes:
    request = _right_request()
    request[5].clear()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(standby.socket_path()))
        assert connection.recv(1) == b"\x06"
        folder_fd = os.open("/", os.O_PATH)
        messages.send(connection, *request, fds=[0, 1, 2, folder_fd, folder_fd])
        os.close(folder_fd)
        return connection.recv(4096)


def _send_random(connection: socket.socket, rng: random.Random) -> None:
    message = messages.encode(*_request(rng))
    match rng.randrange(6):
        case 0:
            message = rng.randbytes(rng.randrange(1, 2000))
        case 1:
            message = message[: rng.randrange(len(message))]
        case 2:
            changed = bytearray(message)
            for _ in range(rng.randrange(1, 20)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            message = bytes(changed)
        case 3:
            message = message[:4] + rng.randbytes(4) + message[8:]
    read_fd, write_fd = os.pipe()
    folder_fd = os.open("/", os.O_PATH)
    try:
        right = [0, 1, 2, read_fd, folder_fd]
        fds = rng.choice([right, right, right, right[: rng.randrange(5)], right * rng.randrange(40)])
        if fds and message:
            sent = socket.send_fds(connection, [message], fds)
            connection.sendall(message[sent:])
        else:
            connection.sendall(message)
    finally:
        for fd in (read_fd, write_fd, folder_fd):
            os.close(fd)


@pytest.mark.thorough
def test_a_template_survives_any_request(standby, tiny_llama):
    template = standby.template()
    standby.wait_no_server()
    num_fds = template.num_fds()
    answers = b""
    for seed in range(40):
        rng = random.Random(seed)
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.settimeout(60)
            connection.connect(str(standby.socket_path()))
            if rng.random() < 0.9:
                assert connection.recv(1) == b"\x06", seed
            _send_random(connection, rng)
            if rng.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
                answers += connection.recv(4096)
    assert b"refused" in _answer_without_interpreter(standby)
    wait_until(lambda: not template.children())
    wait_until(lambda: template.num_fds() <= num_fds)
    assert standby.template().pid == template.pid
    assert template.num_threads() == 1
    assert b"ready" in answers, "no request was nearly right"
    done = run_cli("serve", tiny_llama, "--preflight-only", "--port", free_port(), environment=standby.environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.thorough
def test_reading_a_message_raises_only_its_own_errors_and_closes_descriptors():
    num_fds = len(list(Path("/proc/self/fd").iterdir()))
    for seed in range(2000):
        rng = random.Random(seed)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.settimeout(60)
            ours.setblocking(False)  # what does not fit into the buffer is left out
            with suppress(OSError):
                _send_random(ours, rng)
            ours.shutdown(socket.SHUT_WR)
            try:
                sections, fds = messages.receive(theirs)
            except (messages.MessageError, OSError):
                continue
            messages.close_all(fds)
            for section in sections:
                with suppress(messages.MessageError):
                    messages.dictionary(section)
    assert len(list(Path("/proc/self/fd").iterdir())) == num_fds


def test_a_message_that_was_sent_whole_is_not_followed_by_an_empty_send():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # each send is a packet, even an empty one
    with ours, theirs, DEVNULL.open("rb") as file:
        messages.send(ours, [b"words"], fds=[file.fileno()])
        content, fds, _, _ = socket.recv_fds(theirs, 4096, messages.MAX_FDS)
        messages.close_all(fds)
        assert content == messages.encode([b"words"])
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@pytest.mark.parametrize(
    "sections",
    [[], [[]], [[b""]], [[b"", b""], [b"a"]], [[b"\xff" * 1000] * 1000], [[b"x"]] * 16, [[b"x" * (4 << 20)]]],
    ids=["none", "empty", "one-empty", "empties", "long", "most", "longer than the socket's buffer"],
)
def test_a_message_arrives_as_it_was_sent(sections):
    ours, theirs = socket.socketpair()
    with theirs, ThreadPoolExecutor(1) as receiver:
        receiving = receiver.submit(messages.receive, theirs)
        with ours, DEVNULL.open("rb") as file:
            messages.send(ours, *sections, fds=[file.fileno(), file.fileno()])
        received, fds = receiving.result()
    messages.close_all(fds)
    assert (received, len(fds) in (1, 2)) == (sections, True)


_FRONT: Final = """
import os, signal, socket, sys
from startup.processes import messages
from startup.standby.forwarding import follow_server
ours, theirs = socket.socketpair()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # in the server, as if it ended just then
pid = os.fork()
if pid == 0:
    ours.close()
    messages.send(theirs, [b"again", b"ASKED", b"cold"])
    sys.stdin.read()
    os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
theirs.close()
sys.orig_argv[:] = [sys.executable, "-S", "-c", "import os; print(os.environ['ASKED'], flush=True)"]
print(pid, flush=True)
sys.exit(follow_server(ours, pid, os.pidfd_open(pid), os.pipe()[1], None))
"""
"""A front process that follows a server. The server requests a cold start. It ends with standard input."""


@contextmanager
def _front(environment: dict[str, str]) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    arguments = [sys.executable, "-c", _FRONT]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment}
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, env=environment, stdin=pipe, stdout=pipe, text=True) as front:
        server_pid = int(front.stdout.readline())
        try:
            yield front, server_pid
        finally:
            front.kill()
    wait_until(lambda: is_gone(server_pid))


def _finish(front: "subprocess.Popen[str]") -> str:
    """Ends the server. Returns the output of the program that has replaced the front process."""
    return front.communicate(timeout=60)[0]


def test_without_a_signal_the_start_goes_on_cold():
    with _front({}) as (front, _):
        assert _finish(front) == "cold\n"
        assert front.returncode == 0


def test_a_signal_that_the_ending_server_did_not_act_on():
    with _front({}) as (front, _):
        wait_until(lambda: _catches(front.pid, signal.SIGCONT))  # the last one
        front.send_signal(signal.SIGTERM)
        assert (_finish(front), front.returncode) == ("", -signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_just_before_the_program_is_executed_again(tmp_path, number):
    stop = StopPoint(tmp_path, "os.exec", "")
    environment = {"PYTHONPATH": os.pathsep.join([*stop.environment.values(), str(Path(__file__).parents[3])])}
    with _front(environment) as (front, _):
        front.stdin.close()
        stopped = stop.wait_stopped()
        assert stopped.pid == front.pid
        front.send_signal(number)
        stopped.resume()
        front.stdin = None
        assert (_finish(front), front.returncode) == ("", -number)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_just_before_a_cold_start_is_executed_again(number, tmp_path):
    """A Python handler would only record the signal, and the new program would not have the record."""
    stop = StopPoint(tmp_path, "os.exec", "")
    code = "import os, signal; from startup.vllm.launch.new_start import exec_again; "
    code += f"signal.signal({int(number)}, lambda *_: None); exec_again('VCLI_PLAIN_VLLM', '1', os.environ)"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **stop.environment}) as process:
        stopped = stop.wait_stopped()
        is_caught = _catches(process.pid, number)
        process.send_signal(number)
        stopped.resume()
        assert process.wait(60) == -number
    assert not is_caught


def _catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)
