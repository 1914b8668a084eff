"""The output of models' processes (names, bounds, the cause of a failure), and orders to sleep."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from base.server_settings import control_socket
from router.child import server as server_module
from router.child.log import ChildLog, LogRelay, encode_line
from router.child.server import OwnServer, SleepError
from startup.errors import UNKNOWN_CAUSE

_MASK = "********"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def relay(output: Path) -> Iterator[LogRelay]:
    fd = os.open(output, os.O_WRONLY | os.O_CREAT)
    relay = LogRelay("text", fd)
    yield relay
    relay.close()
    os.close(fd)


async def written(text: bytes, relay: LogRelay) -> ChildLog:
    """The log of a process that has written this text and has ended."""
    log = ChildLog("qwen", relay)
    with log.open() as fd:
        copy = os.dup(fd)
    writing = threading.Thread(target=_write, args=(copy, text))
    writing.start()
    await log.close(60)
    writing.join()
    relay.close()
    return log


def _write(fd: int, text: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("text", "relayed"),
    [
        (b"one\n\ntwo", b"[qwen] one\n[qwen] \n[qwen] two\n"),
        (b"\r10 %\r50 %\r100 %\r\nnext\n", b"[qwen] 100 %\n[qwen] next\n"),
    ],
    ids=["a last line without an end", "the last state of a progress bar"],
)
async def test_each_line_gets_the_name(relay, output, text, relayed):
    await written(text, relay)
    assert output.read_bytes() == relayed


async def test_a_line_without_an_end_is_cut_and_not_kept_whole(relay, output):
    log = await written(b"x" * 1_000_000, relay)
    assert max(map(len, output.read_bytes().splitlines())) <= 1 << 15
    assert len(str(log.explain_failure())) < 1000


async def test_a_failure_is_explained_as_by_vllm_cli_explain(relay):
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'
    log = await written(f"{trace}torch.OutOfMemoryError: CUDA out of memory. Tried\n".encode() + b"bye\n", relay)
    told = log.explain_failure()
    assert "CUDA out of memory" in str(told)
    assert told.cause == "gpu-out-of-memory"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("slot 0: prompt: my secret prompt", ""),
        ("torch.OutOfMemoryError: CUDA out of memory. prompt", "the GPU has not enough memory"),
    ],
)
async def test_texts_of_requests_are_not_reported(relay, line, told):
    log = await written(f"{line}\n".encode(), relay)
    assert str(log.explain_failure(has_served=True)) == told


async def test_last_lines_tell_a_failure_that_is_not_known_without_secrets(relay):
    log = await written(b"a\nb\nserver --api-key sk-123 failed\nred \x1b[31m and k3y-of-words\n", relay)
    told = log.explain_failure(["serve", "--hf-token", "k3y-of-words"])
    assert told.cause == UNKNOWN_CAUSE
    assert str(told) == f"b / server --api-key {_MASK} {_MASK} / red \\x1b[31m and {_MASK}"


async def test_a_standard_error_that_nobody_reads_delays_nothing_and_lines_are_counted():
    read_fd, write_fd = os.pipe()
    relay = LogRelay("text", write_fd)
    for _ in range(200):  # 12 MiB: the thread may have taken 4 MiB before it waits, and 4 MiB may wait
        relay.write([b"x" * (1 << 16) + b"\n"])
    await asyncio.sleep(0)
    reading = threading.Thread(target=lambda: _read_all(read_fd, found))
    found: list[bytes] = []
    reading.start()
    relay.close(60)
    os.close(write_fd)
    reading.join()
    text = b"".join(found)
    assert b"lines of models were left out" in text
    assert len(text) < 9 << 20


def test_a_record_of_json_gets_the_model_and_other_lines_become_records():
    """What a record has escaped stays escaped."""
    line = encode_line(json.dumps({"message": "\u202e \x9b"}), "qwen", "json")
    assert line.isascii()
    assert json.loads(line) == {"message": "\u202e \x9b", "model": "qwen"}
    record = json.loads(encode_line("plain \x1b[31m", "qwen", "json"))
    assert (record["message"], record["model"], record["level"]) == ("plain \\x1b[31m", "qwen", "INFO")


@pytest.mark.parametrize("line", ["{not json", "[1]", '{"a": 1} rest', "{" * 5000])
def test_no_line_breaks_the_json(line):
    assert json.loads(encode_line(line, "qwen", "json"))["message"] == line


def _read_all(fd: int, found: list[bytes]) -> None:
    with open(fd, "rb") as file:
        found.append(file.read())


@asynccontextmanager
async def _told(folder: Path, answer: bytes | None) -> AsyncIterator[tuple[OwnServer, list[Any]]]:
    """A server that sends this answer to each order, or sends none. Yields it with the received orders."""
    orders: list[Any] = []
    answering: list[Any] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.current_task())
        orders.append(json.loads(await reader.readline()))
        if answer is None:
            await reader.read()
        writer.write(answer or b"")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    own = OwnServer((), str(folder / "s"))
    listening = await asyncio.start_unix_server(take, control_socket(str(folder / "s")))
    try:
        async with listening:
            yield own, orders
    finally:
        await asyncio.gather(*answering)
        await own.connector.close()


async def test_an_order_is_one_line_each_way(tmp_path):
    async with _told(tmp_path, b'{"ok": true, "took_s": 0.41}\n') as (server, orders):
        await server.sleep(2)
        await server.wake(1 << 30)
    assert orders == [{"do": "sleep", "level": 2}, {"do": "wake"}]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b'{"ok": false, "error": "out of memory"}\n', "refused", "out of memory"),
        (b"", "error", "its server ended the connection"),
        (b"[]\n", "error", "its server ended the connection"),
        (b"no json\n", "error", "cannot be read"),
        (b"x" * 5000, "error", "cannot be read"),
        (None, "timeout", "no answer within 0 s"),
    ],
    ids=["refused", "end", "list", "text", "long", "silent"],
)
async def test_what_else_is_an_error_with_its_reason(answer, kind, text, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "_SLEEP_S", 0.1 if answer is None else 60.0)
    async with _told(tmp_path, answer) as (server, _):
        with pytest.raises(SleepError, match=text) as raised:
            await server.sleep(1)
    assert raised.value.kind == kind


async def test_a_server_without_the_socket_takes_no_orders(tmp_path):
    server = OwnServer((), str(tmp_path / "s"))
    with pytest.raises(SleepError, match="no socket for it") as raised:
        await server.sleep(1)
    assert raised.value.kind == "refused"
    await server.connector.close()
