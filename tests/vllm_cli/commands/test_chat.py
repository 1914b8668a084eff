"""`vllm-cli chat` with a real HTTP server that streams. Commands and benchmarks read odd answers."""

import json
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.support.cli import CLI, run_cli
from tests.support.http_server import Request, ScriptedServer, serving
from tests.support.terminal import read_terminal, read_until
from vllm_cli.bench.target import ReadyServer
from vllm_cli.client.running_servers import _poll_state, _read_models
from vllm_cli.client.server_address import parse_url
from vllm_cli.client.waiting import parse_graphs
from vllm_cli.errors import ConnectionFailedError
from vllm_cli.main import main


class ChatServer(ScriptedServer):
    """A server that lists two models and answers POST with the queued replies, like an OpenAI server."""

    def __init__(self, place: int | str = 0) -> None:
        super().__init__(self._decide, place)
        self.replies: list[Any] = []
        self.is_disconnected = threading.Event()

    @property
    def posts(self) -> list[dict[str, Any]]:
        return [{"path": request.path, **request.json} for request in self.requests if request.method == "POST"]

    def queue_chat(self, *texts: str) -> None:
        deltas = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
        events = ({"choices": [{"delta": delta}]} for delta in deltas)
        self.replies.append(_streamed(*events, {"choices": [], "usage": {"completion_tokens": 7}}))

    def queue_endless_answer(self, text: str) -> None:
        def stream(handler: Any) -> None:
            events = iter(lambda: self.is_disconnected.wait(0.01), True)
            with suppress(OSError):
                _stream(handler, ({"choices": [{"delta": {"content": text}}]} for _ in events), ends=False)
            self.is_disconnected.set()

        self.replies.append(stream)

    def _decide(self, request: Request) -> Any:
        models = {"data": [{"id": "fake-model"}, {"id": "other"}]}
        return (200, models) if request.method == "GET" else self.replies.pop(0)


def _streamed(*events: dict[str, Any], ends: bool = True) -> Callable[[Any], None]:
    return lambda handler: _stream(handler, events, ends=ends)


def _stream(handler: Any, events: Iterable[dict[str, Any]], *, ends: bool) -> None:
    """Sends a comment and the events in chunks. If `ends`, also sends the end of the stream."""

    def send(text: str) -> None:
        handler.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n".encode())

    handler.close_connection = not ends
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    send(": a comment\n\n")
    for event in events:
        send(f"data: {json.dumps(event)}\n\n")
    if ends:
        send("data: [DONE]\n\n")
        send("")


@pytest.fixture
def fake_server() -> Iterator[ChatServer]:
    with serving(ChatServer()) as server:
        yield server


_LATIN_1 = b"caf\xe9"
_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale", [{}, _ASCII], ids=["UTF-8", "ASCII"])
@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        pytest.param(["--quick", "café 🦊"], 0, id="quick"),
        pytest.param(["--system-prompt", "café 🦊", "--quick", "x"], 0, id="system prompt"),
        pytest.param(["--quick", _LATIN_1], 2, id="quick, not UTF-8"),
        pytest.param(["--system-prompt", _LATIN_1, "--quick", "x"], 2, id="system prompt, not UTF-8"),
        pytest.param(["--model-name", _LATIN_1, "--quick", "x"], 2, id="model, not UTF-8"),
    ],
)
def test_arguments_reach_the_server_as_given_or_are_reported(fake_server, arguments, exit_code, locale):
    fake_server.queue_chat("é")
    command = [*CLI, "chat", "--url", fake_server.url, *arguments]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **locale}, check=False)
    assert done.returncode == exit_code
    if exit_code:
        assert b"Error: The text is not UTF-8: the bytes \\xe9 follow 'caf'." in done.stderr
        assert not fake_server.posts
    else:
        assert "café 🦊" in [message["content"] for message in fake_server.posts[0]["messages"]]


@pytest.mark.parametrize("locale", [{}, _ASCII], ids=["UTF-8", "ASCII"])
def test_a_line_that_is_not_utf8_is_reported_and_the_next_one_is_sent(fake_server, locale):
    fake_server.queue_chat("ok")
    command = [*CLI, "chat", "--url", fake_server.url]
    given = _LATIN_1 + b"\n" + "café\n".encode()
    done = subprocess.run(command, input=given, capture_output=True, env={**os.environ, **locale}, check=False)
    assert (done.returncode, done.stdout) == (1, b"ok\n")
    assert b"the bytes \\xe9 follow 'caf'" in done.stderr
    assert [post["messages"][0]["content"] for post in fake_server.posts] == ["café"]


def test_a_chat_whose_answers_nobody_reads_ends(fake_server):
    fake_server.queue_chat("a")
    command = " ".join([*CLI, "chat", "--url", fake_server.url])
    done = subprocess.run(["bash", "-c", f"yes | {command} | true; exit ${{PIPESTATUS[1]}}"], check=False, timeout=100)
    assert done.returncode == 0
    assert len(fake_server.posts) <= 1


def test_quick_prints_the_answer_while_it_streams(fake_server, capfd):
    fake_server.queue_chat("Par", "is", ".")
    arguments = ["chat", "--url", f"{fake_server.url}/v1", "--system", "Be brief.", "--model-name", "mine"]
    assert main([*arguments, "--quick", "Capital?"]) == 0
    assert capfd.readouterr().out == "Paris.\n"
    (request,) = fake_server.posts
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["stream"]) == ("mine", True)
    assert request["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"}]


def test_the_key_of_option_or_variable_and_given_sampling_parameters_are_sent(fake_server, monkeypatch):
    sampling = {"temperature": 0.0, "max_tokens": 9}
    arguments_of_sampling = ["--temperature", "0", "--max-tokens", "9"]
    for variables, arguments, key, sent in (
        ({"VLLM_API_KEY": "server's"}, [], "server's", {}),
        ({"VLLM_API_KEY": "server's", "OPENAI_API_KEY": "openai's"}, [], "openai's", {}),
        ({"OPENAI_API_KEY": "openai's"}, ["--api-key", "given", *arguments_of_sampling], "given", sampling),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        fake_server.queue_chat("Hi")
        assert main(["chat", "--url", fake_server.url, *arguments, "-q", "Hi"]) == 0
        assert {request.headers.get("Authorization") for request in fake_server.requests} == {f"Bearer {key}"}
        (post,) = fake_server.posts
        assert {name: post[name] for name in sampling if name in post} == sent
        fake_server.requests.clear()


def test_the_interactive_chat_keeps_its_history_until_it_is_cleared(fake_server, invoke):
    fake_server.queue_chat("Hello!")
    fake_server.queue_chat("Fine.")
    fake_server.queue_chat("Again.")
    lines = "hi\n\nhow are you\n/clear\nhi\n/bye\nunread\n"
    done = invoke("chat", "--url", fake_server.url, "--system", "S", input=lines)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello!\nFine.\nAgain.\n", "New chat.\n")
    system = ("system", "S")
    assert [[(m["role"], m["content"]) for m in request["messages"]] for request in fake_server.posts] == [
        [system, ("user", "hi")],
        [system, ("user", "hi"), ("assistant", "Hello!"), ("user", "how are you")],
        [system, ("user", "hi")],
    ]


def test_help_lists_the_words_and_unknown_words_are_named_and_not_sent(fake_server, invoke):
    done = invoke("chat", "--url", fake_server.url, input="/help\n/exit\n")
    assert (done.returncode, done.stderr, fake_server.posts) == (0, "", [])
    assert {"/exit", "/help", "Ctrl-C"} <= set(done.stdout.split())
    fake_server.queue_chat("A file.")
    done = invoke("chat", "--url", fake_server.url, input="/nonsense\n/? what\n/etc/hosts is what?\n")
    assert (done.returncode, done.stdout) == (1, "A file.\n"), "a script sees that a message was not sent"
    assert [line.split(", not ")[1] for line in done.stderr.splitlines()] == ["/nonsense.", "/?."]
    assert "/clear, /exit, /bye, /help" in done.stderr


def test_after_an_error_the_conversation_continues_without_the_failed_turn(fake_server, invoke):
    fake_server.replies.append((400, {"error": {"message": "too long", "type": "BadRequestError"}}))
    fake_server.queue_chat("Hello!")
    done = invoke("chat", "--url", fake_server.url, input="hi\nhello\n")
    assert (done.returncode, done.stdout) == (1, "Hello!\n"), "a script sees that a request failed"
    assert done.stderr == "Error: The server answered 400: too long\n"
    assert [message["content"] for message in fake_server.posts[1]["messages"]] == ["hello"]


def test_no_server_is_one_line_and_exit_code_1(capfd):
    with socket.socket() as taken:  # bound by this test, without a listener
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert main(["chat", "--host", "127.0.0.1", "--port", str(port), "-q", "hi"]) == 1
    assert capfd.readouterr().err == (
        f"Error: No server answers at http://127.0.0.1:{port} (connection refused). Is `vllm-cli serve` running?\n"
    )


@pytest.mark.parametrize(
    ("reply", "out", "line"),
    [
        ((401, {"error": {"message": "Unauthorized", "code": 401}}), "", "The server answered 401: Unauthorized"),
        ((404, {"detail": "Not Found"}), "", "The server answered 404: Not Found"),
        ((502, b"<html>bad\ngateway</html>"), "", "The server answered 502: <html>bad gateway</html>"),
        (_streamed({"error": {"message": "engine died"}}), "", "The server failed: engine died"),
        (_streamed({"choices": [{"delta": {"content": "Par"}}]}, ends=False), "Par\n", "The server "),
    ],
    ids=["key", "path", "proxy", "in the stream", "incomplete"],
)
def test_an_error_is_one_line(fake_server, reply, out, line, capfd):
    fake_server.replies.append(reply)
    assert main(["chat", "--url", fake_server.url, "-q", "hi"]) == 1
    captured = capfd.readouterr()
    assert captured.out == out
    (error,) = captured.err.splitlines()
    assert error.startswith(f"Error: {line}")


def test_ctrl_c_stops_the_answer_and_a_second_one_the_chat(fake_server):
    fake_server.queue_endless_answer("on and ")
    terminal, child_side = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), child_side)
    chat = subprocess.Popen([*CLI, "chat", "--url", fake_server.url], **streams)
    os.close(child_side)
    try:
        read_until(terminal, b"> ")
        os.write(terminal, b"go\n")
        read_until(terminal, b"on and on and ")
        chat.send_signal(signal.SIGINT)
        read_until(terminal, b"(stopped)")
        read_until(terminal, b"> ")
        assert fake_server.is_disconnected.wait(60)
        chat.send_signal(signal.SIGINT)
        assert chat.wait(60) == 130
    finally:
        chat.kill()
        chat.wait()
        os.close(terminal)


def test_control_characters_of_an_answer_are_escaped_on_a_terminal(fake_server):
    for is_terminal, expected in (
        (True, ("a\\x1b]0;title\\x07\\x9b2J\nb\\u202e\n", None)),
        (False, ("", "a\x1b]0;title\x07\x9b2J\nb\u202e\n")),
    ):
        fake_server.queue_chat("a\x1b]0;title\x07", "\x9b2J\n", "b\u202e")
        terminal, child_side = pty.openpty()
        out = child_side if is_terminal else subprocess.PIPE
        done = run_cli("chat", "--url", fake_server.url, "-q", "hi", stdout=out)
        os.close(child_side)
        assert done.returncode == 0
        assert (read_terminal(terminal).replace("\r\n", "\n"), done.stdout) == expected


VALUES = (None, True, 5, -1.5, 10**400, float("inf"), "text", "\ud800\x1b[2J", [], [None], ["x"], {}, {"a": 1})
FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda value: value,
    lambda value: {"error": value, "choices": []},
    lambda value: {"error": {"message": value}},
    lambda value: {"data": value, "spans": value, "version": value, "models": value, "status": value},
    lambda value: {"data": [value], "spans": [value], "models": [value]},
    lambda value: {"data": [{"id": value}], "spans": [dict.fromkeys(("process", "name", "end_s"), value)]},
    lambda value: {"models": [{"id": "m", "aliases": value, "status": value, "progress": value, "for_s": value}]},
    lambda value: {"models": [{"id": value, "num_running": value, "pid": value, "memory_bytes": value}]},
    lambda value: {"status": value, "phase": value, "progress": value, "eta_s": value},
    lambda value: {"choices": value, "usage": value},
    lambda value: {"choices": [value]},
    lambda value: {"choices": [{"text": value}], "usage": {"completion_tokens": value}},
    lambda value: {"choices": [{"delta": value}]},
    lambda value: {"choices": [{"delta": {"content": value}}]},
)
BODIES = [json.dumps(form(value)).encode() for form in FORMS for value in VALUES] + [
    b"",
    b"<html>",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"data": [',
    b'"\\ud800',
    b"1" * 5000,
    b"x" * 100_000,
]
_CHAT = "chat --model m --stats --quick hi --url"
_COMMANDS = (_CHAT, "chat --quick hi --url", "load m --url", "unload m --url", "wait --graphs --timeout 0.01")
_BENCH = {"path": "/v1/completions", "model": "m", "api_key": None}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with serving(ScriptedServer(lambda _: (200, b""))) as running:
        yield running


def answers() -> Iterator[tuple[int, bytes]]:
    """Each body as a whole answer, as a failure, and as a stream that ends properly or not."""
    for body in BODIES:
        yield from ((200, body), (503, body), (404, body))
        yield from ((200, b"data: " + body + b"\n\ndata: [DONE]\n\n"), (200, b"data: " + body))


@pytest.mark.thorough
@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_reads_every_answer(command, server, invoke):
    for answer in answers():
        server.decide = lambda _, answer=answer: answer
        done = invoke(*command.split(), server.url)
        assert done.returncode in (0, 1, 4), answer
        assert done.returncode == 0 or "Error: " in done.stderr, (answer, done)


@pytest.mark.thorough
def test_tables_and_benchmarks_read_every_answer(server):
    address = parse_url(server.url)
    for answer in answers():
        server.decide = lambda _, answer=answer: answer
        str(_poll_state(address)), _read_models(address), parse_graphs(answer[1].decode(errors="replace"))
        with suppress(ConnectionFailedError):
            ReadyServer(base_url=server.url, **_BENCH).ask_spans()
    assert parse_graphs("vllm_cli:cuda_graphs_total 1.2.3\nvllm_cli:cuda_graphs_captured " + "9" * 400) is None


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": "no\x1b memory"}, "The server failed: no\\x1b memory"),
        ({"error": {"message": "no memory"}}, "The server failed: no memory"),
        ({"choices": {}}, "as an OpenAI server does: `choices.0.text` is in {}"),
        ({"choices": [{"text": 5}]}, "as an OpenAI server does: `choices.0.text` is in 5"),
        ([1], "as an OpenAI server does: `the answer` is in [1]"),
    ],
)
def test_the_error_names_what_is_wrong_in_a_stream(event, message, server, invoke):
    server.decide = lambda _: (200, b"data: " + json.dumps(event).encode() + b"\n\n")
    done = invoke(*_CHAT.split(), server.url)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_another_kind_of_answer_is_named(server, invoke):
    server.decide = lambda _: (200, b"<html>", {"Content-Type": "text/html"})
    assert "No stream, but text/html, came" in invoke(*_CHAT.split(), server.url).stderr
    assert "its answer is no JSON (<html>)" in invoke("chat", "-q", "hi", "--url", server.url).stderr


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/v1/", "/v1", "/v1/models", "/", ""])
def test_an_address_that_was_copied_from_a_request_is_the_servers(path):
    assert parse_url(f"http://h:1{path}").path == ""
    assert parse_url(f"http://h:1/proxy{path}").path == "/proxy"


def test_a_wrong_path_in_the_address_is_named(server, invoke):
    server.decide = lambda _: (404, b"{}")
    done = invoke(*_CHAT.split(), f"{server.url}/v1/chats")
    assert "The address has the path /v1/chats: leave it out if it is wrong." in done.stderr


def test_on_a_terminal_a_file_gets_the_answers_alone(fake_server, tmp_path):
    fake_server.queue_chat("Hello")
    terminal, child_side = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        arguments = [*CLI, "chat", "--url", fake_server.url]
        chat = subprocess.Popen(arguments, stdin=child_side, stdout=out, stderr=child_side)
        os.close(child_side)
        read_until(terminal, b"Chatting with fake-model.")
        read_until(terminal, b"> ")
        os.write(terminal, b"hi\n")
        read_until(terminal, b"> ")
        os.write(terminal, b"/exit\n")
        assert chat.wait(60) == 0
    os.close(terminal)
    assert (tmp_path / "out").read_bytes() == b"Hello\n"
