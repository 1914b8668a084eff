"""The router forwards requests and responses unchanged between clients and models' servers."""

import asyncio
import errno
import gc
import gzip
import json
import os
import socket
import tempfile
from contextlib import suppress
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from router.http.model_choice import STREAM_PATHS
from router.http.waiting import Patience
from router.http.websocket import Direction
from router.model_pool import ModelRefused
from server.terms.limits import LimitsConfig
from tests.conversations.conversation import read_stream
from tests.router.http.small_router import SmallChild, SmallRouter, eventually, post
from tests.support.ports import free_port

CHAT = "/v1/chat/completions"
MB = 1 << 20


def body_of(model: str = "m", size: int = 0, **fields: Any) -> bytes:
    """The body of a request. The model's name comes after `size` bytes."""
    return json.dumps({"prompt": "x" * size, "model": model, **fields}).encode()


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    """Answers with the request that it has received, as JSON."""
    body = await read_all(request)
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": [[name.lower(), value] for name, value in request.headers.items()],
            "size": len(body),
            "body": body[:1000].decode("latin-1"),
        }
    )


async def read_all(request: web.BaseRequest) -> bytes:
    """Reads the whole body, without the limit of `request.read`."""
    return b"".join([part async for part in request.content.iter_any()])


def headers_of(answer: dict[str, Any], name: str) -> list[str]:
    return [value for found, value in answer["headers"] if found == name]


# Requests


async def test_path_query_and_headers_arrive_as_they_were_written(router):
    await router.serve("m", running=echo)
    reader, writer = await router.connect()
    target = "/v1/a%2Fb/%7Ec//d?x=%20+&x=2&q=a%26b"
    names = ("X-Twice: 1", "x-twice: 2", "Connection: keep-alive, x-mine", "X-Mine: 1", "TE: trailers", "Expect: x")
    writer.write(post(target, body_of(), *names, "Authorization: Bearer theirs", "Accept-Encoding: br"))
    answer = json.loads(await read_body(reader))
    assert answer["target"] == target
    assert headers_of(answer, "x-twice") == ["1", "2"]
    assert headers_of(answer, "authorization") == ["Bearer theirs"]
    assert headers_of(answer, "accept-encoding") == ["br"]
    assert {"x-mine", "te", "expect", "user-agent", "accept", "content-type"}.isdisjoint(dict(answer["headers"]))
    assert answer["body"] == body_of().decode()


@pytest.mark.parametrize("size", [0, 300_000, pytest.param(2 * MB, id="2 MB")])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_bodies_arrive_whole(router, ask, size, is_chunked):
    await router.serve("m", "n", running=echo)
    body = body_of(size=size)

    async def pieces() -> Any:
        for begin in range(0, len(body), 70_001):
            yield body[begin : begin + 70_001]

    answer = (await ask("POST", CHAT, data=pieces() if is_chunked else body)).json
    assert answer["size"] == len(body)
    assert headers_of(answer, "content-length") == [str(len(body))]
    assert headers_of(answer, "transfer-encoding") == []


async def test_all_bodies_together_are_limited(router, ask):
    await router.serve("m", "n", limits=LimitsConfig(max_held_bytes=2 * MB))
    waiting_body = body_of(size=3 * MB // 2)
    sending = asyncio.create_task(ask("POST", CHAT, data=BytesIO(waiting_body)))
    await eventually(lambda: router.pool.num_waiting == 1)
    refused = await ask("POST", CHAT, data=BytesIO(body_of(size=MB)))
    assert (refused.status, "take all room (--http-max-held-size)" in refused.error["message"]) == (503, True)
    await router.start_model("m", echo)
    assert (await sending).json["size"] == len(waiting_body)
    assert (await ask("POST", CHAT, data=BytesIO(body_of(size=MB)))).status == 200


async def test_a_body_without_room_is_a_503(router, ask, monkeypatch):
    await router.serve("m", "n")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", fail)
    answer = await ask("POST", CHAT, data=body_of())
    assert (answer.status, "No space left" in answer.error["message"]) == (503, True)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All temporary files that the router creates."""
    found = []
    create = tempfile.TemporaryFile

    def create_and_count(*args: Any, **kwargs: Any) -> Any:
        found.append(create(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", create_and_count)
    return found


async def test_what_waits_is_in_files_once_it_is_much(router, ask, files):
    await router.serve("m", "n")
    body = body_of(size=3 * MB)
    sending = asyncio.create_task(ask("POST", CHAT, data=body))
    await eventually(lambda: router.pool.num_waiting == 1)
    assert len(files) == 1
    await router.start_model("m", echo)
    assert (await sending).json["size"] == len(body)
    assert files[0].closed


# Responses


def answering(**kwargs: Any) -> Any:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(**kwargs)

    return answer


async def test_headers_of_responses_are_passed_on_and_cookies_are_not_kept(router, client):
    cookies, packed = [], gzip.compress(b"text")
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Location", "/else"), ("Content-Encoding", "gzip")]
    headers += [("Server", "theirs"), ("Date", "Mon, 01 Jan 2024 00:00:00 GMT"), ("X-Name", "caf\xe9")]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(status=307, reason="Elsewhere", headers=headers, body=packed)

    await router.serve("m", running=answer)
    for _ in range(2):
        async with client.post(router.url + CHAT, data=body_of(), allow_redirects=False) as response:
            assert (response.status, response.reason) == (307, "Elsewhere")
            names = {name for name, _ in headers}
            assert [each for each in response.headers.items() if each[0].title() in names] == headers
            assert await response.read() == packed
    assert cookies == [None, None]


_HEAD = b"HEAD /v1/x?model=m HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "answer", "expected"),
    [
        *((post(CHAT, body_of()), {"status": s}, b" %d " % s) for s in (204, 304)),
        (_HEAD, {"body": b"x" * 1234}, b"content-length: 1234"),
    ],
    ids=["204", "304", "HEAD"],
)
async def test_responses_without_a_body(router, request_bytes, answer, expected):
    await router.serve("m", running=answering(**answer))
    reader, writer = await router.connect()
    for _ in range(2):
        writer.write(request_bytes)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert expected in head
        assert b"transfer-encoding" not in head


async def test_an_old_client_gets_a_stream_that_ends_with_the_connection(router):
    await router.serve("m", running=streaming(3))
    reader, _ = await router.connect(post(CHAT, body_of(), version="1.0"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"chunked" not in head
    assert await reader.read() == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def streaming(events: int | bytes, *, after_each: Any = None, then: Any = None) -> Any:
    """A server that writes this number of events, or this text."""
    parts = [events] if isinstance(events, bytes) else [b"data: %d\n\n" % index for index in range(events)]

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            if after_each is not None:
                await after_each()
        if then is not None:
            await then(request)
        return response

    return stream


async def test_each_event_arrives_when_it_is_written(router, client):
    go_on = asyncio.Semaphore(0)
    await router.serve("m", running=streaming(5, after_each=go_on.acquire))
    async with client.post(router.url + CHAT, data=body_of(stream=True)) as response:
        for index in range(5):
            assert await response.content.readuntil(b"\n\n") == f"data: {index}\n\n".encode()
            go_on.release()
        assert await response.read() == b""


# Back-pressure


class Endless:
    """A server that writes until its client stops it."""

    written = 0

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            self.written += 65536


async def test_a_client_that_does_not_read_stops_the_model(router):
    endless = Endless()
    await router.serve("m", running=endless)
    _, writer = await router.connect(limit=1024)
    writer.transport.pause_reading()
    writer.write(post(CHAT, body_of()))
    await eventually(lambda: endless.written > 0)
    before = 0
    while endless.written > before:
        before = endless.written
        await asyncio.sleep(0.1)
    assert endless.written < 40 * MB  # the sockets' buffers


async def test_a_client_that_does_not_read_holds_no_model_that_others_need(router):
    await router.serve("m", patience=Patience(stall_s=0.1))
    child = await router.start_model("m", Endless())
    _, writer = await router.connect(limit=1024)
    writer.transport.pause_reading()
    writer.write(post(CHAT, body_of()))
    await eventually(lambda: router.pool.num_leases == 1)
    await asyncio.sleep(0.3)
    assert router.pool.num_leases == 1
    del router.pool.children["m"]
    await eventually(lambda: router.pool.num_leases == 0)
    await child.connector.close()


class BackgroundModel:
    """A server with one response in the background. A test changes the status of this response."""

    def __init__(self) -> None:
        self.status = "queued"

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        text = json.dumps({"id": "resp_1", "status": self.status, "metadata": {"status": "queued"}})
        if request.method == "POST" and (await request.json())["stream"]:
            return web.Response(text=f'data: {{"response": {text}}}\n\n', content_type="text/event-stream")
        return web.Response(text=text, content_type="application/json")


@pytest.fixture
async def background_model(router: SmallRouter, request: pytest.FixtureRequest) -> BackgroundModel:
    """The parameter is the time in seconds for which the router keeps the model for an unread response."""
    model = BackgroundModel()
    patience = Patience(follow_s=0.02, unread_s=getattr(request, "param", 120.0))
    await router.serve("m", "n", running=model.respond, patience=patience)
    return model


async def respond(router: SmallRouter, client: aiohttp.ClientSession, *, is_stream: bool = False) -> None:
    body = body_of(background=True, stream=is_stream)
    async with client.post(router.url + "/v1/responses", data=body) as response:
        assert "resp_1" in await response.text()


async def read_response(router: SmallRouter, client: aiohttp.ClientSession) -> str:
    """Reads the response's status. The router must answer at once, even if the model's room is claimed."""
    async with asyncio.timeout(30), client.get(f"{router.url}/v1/responses/resp_1") as response:
        return str((await response.json())["status"])


async def test_a_response_in_the_background_keeps_its_model_until_it_was_read(router, client, background_model):
    """Also while the model admits no other request, because another model waits for its room."""
    await respond(router, client)
    router.pool.is_claimed = True
    for background_model.status in ("queued", "in_progress"):
        assert await read_response(router, client) == background_model.status
    background_model.status = "completed"
    await asyncio.sleep(0.1)
    assert router.pool.num_leases == 1
    assert await read_response(router, client) == "completed"
    await eventually(lambda: router.pool.num_leases == 0)


@pytest.mark.parametrize(
    ("background_model", "way"),
    [(120.0, "streamed"), (0.1, "never read"), (120.0, "router ends"), (120.0, "model ends")],
    indirect=["background_model"],
)
async def test_a_response_in_the_background_that_nobody_needs_keeps_no_model(router, client, background_model, way):
    await respond(router, client, is_stream=way == "streamed")
    await asyncio.sleep(0.1)
    assert router.pool.num_leases == 1
    background_model.status = "queued" if way == "model ends" else "completed"
    router.pool.is_draining = way == "router ends"
    if way == "model ends":
        del router.pool.children["m"]
    await eventually(lambda: router.pool.num_leases == 0)


@pytest.mark.thorough
async def test_two_responses_in_the_background_may_have_one_id(router, client, background_model, caplog):
    """vLLM takes the id of a response from its client."""
    for _ in range(2):
        await respond(router, client)
    assert router.pool.num_leases == 2
    background_model.status = "completed"
    assert await read_response(router, client) == "completed"
    router.pool.is_draining = True
    await eventually(lambda: router.pool.num_leases == 0)
    gc.collect()
    assert "KeyError" not in caplog.text


# Clients that leave


@pytest.mark.parametrize(("num_events", "size"), [(None, 0), (None, 200_000), (0, 0), (3, 0)])
async def test_a_client_that_leaves_cancels_its_request(router, num_events, size):
    """The client leaves before the response's head, after the head, and in the middle of the stream."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hold(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    await router.serve("m", running=hold if num_events is None else streaming(num_events, then=hold))
    reader, writer = await router.connect(post(CHAT, body_of(size=size)))
    if num_events:
        await reader.readuntil(b"data: 2")
    async with asyncio.timeout(30):
        await begun.wait()
        writer.close()
        await cancelled.wait()
    await eventually(lambda: router.pool.num_leases == 0)


async def test_a_client_that_leaves_while_it_sends_reaches_no_model(router, client, files):
    await router.serve("m", running=echo)
    _, writer = await router.connect()
    request = post(CHAT, b'{"model":"m","x":"' + b"x" * 3 * MB + b'"}')
    writer.write(request[: 2 * MB])
    await eventually(lambda: len(files) == 1)
    writer.close()
    await eventually(lambda: files[0].closed)
    assert (router.pool.num_leases, router.pool.num_waiting) == (0, 0)


# Models' servers that end


async def test_a_model_that_dies_before_it_answers_is_a_503_with_the_reason(router, ask):
    async def die(request: web.BaseRequest) -> web.StreamResponse:
        await abort(request)
        return web.Response()

    await router.serve("m")
    child = await router.start_model("m", die)
    child.reason = "killed by SIGKILL"
    answer = await ask("POST", CHAT, data=body_of())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "killed by SIGKILL" in answer.error["message"]


@pytest.mark.parametrize(
    ("reason", "health", "statuses"),
    [("killed by SIGKILL", "dead", [503, 200]), ("killed by SIGKILL", "hung", [503]), ("", "dead", [503])],
    ids=["dies", "hangs", "lives"],
)
async def test_a_request_that_a_dying_server_refuses_is_sent_again(router, ask, reason, health, statuses):
    """A request that may have caused the engine to hang is not sent again."""
    sent: list[int] = []

    async def refuse(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/health":
            return web.json_response({"status": health}, status=503)
        sent.append(503 if not sent else 200)
        return web.Response(status=sent[-1])

    await router.serve("m")
    child = await router.start_model("m", refuse)
    child.reason = reason
    assert (await ask("POST", CHAT, data=body_of())).status == statuses[-1]
    assert sent == statuses


async def abort(request: web.BaseRequest) -> None:
    """Breaks the connection off after a while, so that what was written has arrived."""
    await asyncio.sleep(0.05)
    assert request.transport is not None
    request.transport.abort()


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["lf", "crlf"])
async def test_a_stream_whose_server_dies_ends_with_the_event_of_an_error(router, ask, end):
    await router.serve("m", running=streaming(b"data: 1" + end + b"data: 2" + end, then=abort))
    answer = await ask("POST", CHAT, data=body_of(stream=True))
    *events, error, done = answer.body.replace(b"\r", b"").strip().split(b"\n\n")
    assert (events, done) == ([b"data: 1", b"data: 2"], b"data: [DONE]")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == 503


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_stream_that_is_broken_off_within_an_event_never_looks_complete(router, version):
    await router.serve("m", running=streaming(b"data: 1\n\ndata: 2", then=abort))
    reader, _ = await router.connect(post(CHAT, body_of(), version=version))
    if version == "1.0":
        with pytest.raises(ConnectionResetError):
            await reader.read()
        return
    received = await reader.read()
    assert b"data: 2" in received
    assert not received.endswith(b"0\r\n\r\n")


async def test_a_long_body_that_is_cut_is_cut_for_the_client(router):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)

    await router.serve("m")
    await router.start_raw_model("m", answer)
    reader, writer = await router.connect(post(CHAT, body_of()))
    received = await reader.read()
    assert received.endswith(b"\r\n\r\n" + b"x" * 1000)


async def test_an_early_answer_to_a_long_body_arrives(router, client):
    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()
        await asyncio.sleep(0.1)

    await router.serve("m")
    await router.start_raw_model("m", reject)
    reader, _ = await router.connect(post(CHAT, b'{"model":"m","x":"' + b"x" * 3 * MB + b'"}'))
    assert b" 413 " in await reader.readline()


@pytest.mark.parametrize("size", [0, 3 * MB])
@pytest.mark.parametrize("way", ["unread", "unanswered", "dead"])
async def test_a_post_over_a_connection_that_has_just_been_closed_is_sent_again_if_it_was_not_read(
    router, ask, size, way
):
    await router.serve("m")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    def serve_two_connections() -> None:
        with listener.accept()[0] as connection:
            read_request(connection)
            connection.sendall(answer)
            connection.recv(1, socket.MSG_PEEK)  # the next request has come
            if way != "unread":
                read_request(connection)
        listener.settimeout(30.0 if way == "unread" else 0.2)
        with suppress(TimeoutError), listener.accept()[0] as connection:
            read_request(connection)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        child = router.create_child()
        listener.bind(child.connector.path)
        listener.listen()
        listener.settimeout(30.0)
        child.reason = "killed by SIGSEGV" if way == "dead" else ""
        await router.pool.start("m", child)
        serving = asyncio.create_task(asyncio.to_thread(serve_two_connections))
        # A connection whose request has not quite been sent when the answer comes is not used again.
        for num_bytes, expected in ((0, 200), (size, 200 if way == "unread" else 503)):
            assert (await ask("POST", CHAT, data=body_of(size=num_bytes))).status == expected
        await serving


def read_request(connection: socket.socket) -> None:
    """Reads a whole request with a body of `body_of`."""
    received = b""
    while not received.endswith(b"}"):
        chunk = connection.recv(1 << 20)
        assert chunk, "the connection was closed within a request"
        received += chunk


@pytest.mark.parametrize("size", [0, 3 * MB])
async def test_a_request_that_was_not_sent_is_sent_to_the_next_process(router, ask, size):
    await router.serve("m")
    pool = router.pool

    class Gone(SmallChild):
        async def end_reason(self) -> str:
            del pool.children["m"]
            started.append(asyncio.create_task(router.start_model("m", echo)))
            return "it was killed"

    started: list[asyncio.Task[SmallChild]] = []
    gone = Gone(base_url=f"http://127.0.0.1:{free_port()}")
    await pool.start("m", gone)
    assert (await ask("POST", CHAT, data=body_of(size=size))).json["size"] == len(body_of(size=size))
    await started[0]
    await gone.connector.close()


@pytest.mark.parametrize("prefix", ["", "/upstream/m", "/root/upstream/m", "/root"])
async def test_a_redirect_of_a_models_server_leads_back_to_it(router, ask, prefix):
    """vLLM redirects a path with a final slash, to an address that only the router knows."""

    async def redirect(request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/")
        to_itself = f"{request.scheme}://{request.host}{path}?{request.rel_url.raw_query_string}"
        place = "https://elsewhere/x" if path == "/elsewhere" else to_itself
        return web.Response(status=307, headers={"Location": place})

    await router.serve("m", running=redirect, root_path="/root")
    answer = await ask("POST", f"{prefix}/v2/unknown/?a=%20", data=body_of(), allow_redirects=False)
    assert (answer.status, answer.headers["location"]) == (307, f"{prefix}/v2/unknown?a=%20")
    answer = await ask("POST", f"{prefix}/elsewhere", data=body_of(), allow_redirects=False)
    assert answer.headers["location"] == "https://elsewhere/x"


# Waiting


QUICK_COMMENTS = Patience(comment_s=0.05)


async def test_a_request_that_is_no_stream_waits_without_comments(router, ask):
    await router.serve("m", patience=QUICK_COMMENTS)
    wanted = ((CHAT, False), ("/v1/embeddings", True))
    sending = [asyncio.create_task(ask("POST", path, data=body_of(stream=stream))) for path, stream in wanted]
    await eventually(lambda: router.pool.num_waiting == 2)
    await asyncio.sleep(0.15)
    await router.start_model("m", echo)
    for task in sending:
        assert (await task).headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("path", sorted(STREAM_PATHS))
@pytest.mark.parametrize("way", ["served", "refused", "answered", "failed", "broken off"])
async def test_a_strict_client_reads_every_stream_that_had_to_wait(router, client, path, way):
    """Comments are no events, and an error is an event of the path's API."""
    await router.serve("m", patience=QUICK_COMMENTS)
    answer = {"error": {"message": "no memory", "code": 400}, "more": "x" * 300_000}
    servers = {
        "served": streaming(2),
        "answered": answering(status=400, text=json.dumps(answer, indent=1)),
        "failed": answering(status=500, text="no memory"),
        "broken off": streaming(2, then=abort),
    }
    async with client.post(router.url + path, data=body_of(stream=True)) as response:
        begin = await response.content.readuntil(b"\n")
        if way == "refused":
            await router.pool.refuse(ModelRefused(503, "no memory", 3))
        else:
            await router.start_model("m", servers[way])
        stream = read_stream((begin + await response.read()).decode())
    assert (response.status, response.content_type) == (200, "text/event-stream")
    assert begin == b": starting, load_weights 42 %, 1.3 s left\n"
    assert [event for event in stream.data if isinstance(event, int)] == [0, 1] * (way in ("served", "broken off"))
    if way != "served":
        is_named = path in ("/v1/messages", "/v1/responses")
        assert (stream.names, stream.is_done) == (["error"], False) if is_named else ([], True)
        assert ("broke off" if way == "broken off" else "no memory") in stream.data[-1]["error"]["message"]


# WebSockets


async def talk(request: web.BaseRequest) -> web.StreamResponse:
    """Sends every message back. Closes the WebSocket with its own code if a message requests it."""
    socket = web.WebSocketResponse(protocols=["realtime"])
    await socket.prepare(request)
    await socket.send_str(f"{request.raw_path} {request.headers.get('Authorization')}")
    async for message in socket:
        if message.type == aiohttp.WSMsgType.TEXT and message.data == "end":
            await socket.close(code=4001, message=b"enough")
        elif message.type == aiohttp.WSMsgType.TEXT and message.data == "die":
            request.transport.abort()
        elif message.type == aiohttp.WSMsgType.TEXT and message.data == "flood":
            while True:
                await socket.send_bytes(b"x" * MB)
        elif message.type == aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    codes.append(socket.close_code)
    return socket


codes: list[int | None] = []


@pytest.fixture
async def realtime(router: SmallRouter) -> str:
    codes.clear()
    await router.serve("m", "n", running=talk, patience=Patience(stall_s=0.1, close_s=0.2))
    return f"{router.url}/v1/realtime?model=m&x=%20"


@pytest.mark.parametrize("compress", [0, 15], ids=["plain", "compressed"])
async def test_messages_of_websockets_pass_in_both_directions(client, realtime, compress):
    offer = {"protocols": ["other", "realtime"], "compress": compress, "headers": {"Authorization": "Bearer theirs"}}
    async with client.ws_connect(realtime, **offer) as socket:
        assert (socket.protocol, socket.compress) == ("realtime", compress)
        assert (await socket.receive_str()) == "/v1/realtime?model=m&x=%20 Bearer theirs"
        for size in (0, 200, 100_000):
            await socket.send_str("é" * size)
            assert (await socket.receive_str()) == "é" * size
        await socket.send_bytes(bytes(range(256)) * 1000)
        assert (await socket.receive_bytes()) == bytes(range(256)) * 1000
        await socket.send_str("end")
        message = await socket.receive()
        assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 4001)


@pytest.mark.parametrize("code", [4002, aiohttp.WSCloseCode.GOING_AWAY], ids=["closes", "disappears"])
async def test_the_end_of_a_websocket_by_the_client_reaches_the_model(client, realtime, router, code):
    async with client.ws_connect(realtime) as socket:
        await socket.receive_str()
        if code == 4002:
            await socket.close(code=code)
        else:
            socket._response.connection.transport.abort()
    await eventually(lambda: router.pool.num_leases == 0 and codes == [code])


async def test_a_websocket_whose_model_dies_is_closed(client, realtime):
    async with client.ws_connect(realtime) as socket:
        await socket.receive_str()
        await socket.send_str("die")
        message = await socket.receive()
        assert (message.data, message.extra) == (aiohttp.WSCloseCode.GOING_AWAY, "The other side has ended")


@pytest.mark.parametrize("reads", [True, False])
async def test_a_silent_websocket_is_closed_once_others_need_the_model(router, client, realtime, reads):
    """PINGs, which clients send automatically, are no content. A client that reads nothing is silent, too."""
    async with client.ws_connect(realtime) as ws:
        transport = ws._response.connection.transport
        await ws.receive_str()
        if reads:
            received = asyncio.create_task(ws.receive())  # without it, aiohttp 3.13 takes no PONG
        else:
            transport.pause_reading()
            await ws.send_str("flood")
        for _ in range(10):
            if reads:  # not by `heartbeat`, which ends a connection whose PONG is late
                await ws.ping()
            await asyncio.sleep(0.03)
        assert router.pool.num_leases == 1
        router.pool.is_claimed = True
        if reads:
            message = await received
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.SERVICE_RESTART)
        await eventually(lambda: router.pool.num_leases == 0)
        transport.abort()


@pytest.mark.parametrize("frame", [b"\x82\x80\0\0\0\0", b"\x82\0"], ids=["masked", "plain"])
async def test_many_frames_in_one_piece_do_not_hold_the_event_loop(frame):
    """A client may send empty frames only. A turn follows 4 KiB of them."""
    sent, passed = frame * (192_000 // len(frame)), bytearray()
    pieces = [sent, b""]

    async def read() -> bytes:
        return pieces.pop(0)

    async def write(data: bytes) -> None:
        passed.extend(data)

    task = asyncio.create_task(Direction(read, write, is_masked=True).run(lambda: None))
    num_turns = 0
    while not task.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns > 192_000 // 4096
    assert passed.startswith(sent)


@pytest.mark.parametrize(("status", "passed"), [(403, 403), (200, 502)])
async def test_a_handshake_that_the_model_rejects_is_its_status(client, router, status, passed):
    await router.serve("m", running=answering(status=status))
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await client.ws_connect(f"{router.url}/v1/realtime?model=m")
    assert caught.value.status == passed


_HIDDEN = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize("pause_s", [0, 0.1], ids=["at once", "in parts"])
@pytest.mark.parametrize(
    ("method", "body", "status", "got"),
    [
        ("GET", b"", 502, [("websocket", b"")]),
        ("GET", _HIDDEN, 400, []),
        ("POST", b"", 200, [(None, b"")]),
        ("POST", _HIDDEN, 200, [(None, _HIDDEN)]),
    ],
)
async def test_only_a_get_without_a_body_begins_a_websocket(router, ask, method, body, status, got, pause_s):
    """The body of another request is no request of its own."""
    found = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        found.append((request.headers.get("Upgrade"), await read_all(request)))
        return web.Response()

    async def later():
        await asyncio.sleep(pause_s)
        yield body

    await router.serve("m", running=note)
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    answer = await ask(method, "/upstream/m/v1/x", data=later() if body and pause_s else body, headers=headers)
    assert (answer.status, found) == (status, got)


async def read_body(reader: asyncio.StreamReader) -> bytes:
    """Reads a response with a Content-Length, and returns its body."""
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await reader.readexactly(length)
