"""Compiles a grammar in a process that may fail, before the engine compiles it.

llguidance is native code, and limits neither its stack nor all of its work. Long chains of rules overflow the
stack, which ends the process. Other grammars take all memory, or never end. A helper process has the engine's
tokenizer, and forks for each trial. The fork has limits of memory and processor time. It ends when the
connection to the engine closes, for example because the client has left.

This module imports only the standard library and llguidance, because the helper runs without `site`.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen
from threading import Lock, Thread
from time import thread_time
from typing import Final, Literal, NamedTuple, NoReturn, TypedDict, TypeVar

import llguidance
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from envs.environment import snapshot

_LONGEST_S: Final = 4.0
"""Processor time of a trial: twice that of 20,000 chained rules, which vLLM's own library takes.

The engine then compiles the grammar in the same time. Requests with harmless grammars do not wait for it.
"""
_MOST_BYTES: Final = 512 << 20
"""Memory of a trial: three times that of 20,000 chained rules, including their stack."""
_TRIAL_STACK_BYTES: Final = 80 << 20
"""Stack of a trial. Chains take at most 3.3 KiB per rule, and 9.4 KiB per definition of a schema.

So 20,000 rules fit, and 8000 definitions. vLLM's own library takes 20,000 rules, but not 5000 definitions.
"""
_STACK_BYTES: Final = 96 << 20
"""Stack of a compilation in the engine: more than in its trial."""
_USE_STACK_BYTES: Final = 1 << 20
"""Stack of a trial's copy and mask. The engine's main thread computes them, and normally has 8 MiB."""
_LONGEST_WAIT_S: Final = 60.0
"""Seconds in which a trial must end, for example on a machine that swaps."""
LONGEST_MASK_S: Final = 0.1
"""The most processor time of one token in a grammar. All sequences wait for it. Most grammars take at most
20 ms. If a grammar is ambiguous, the time grows with the length of the text."""
TOO_SLOW: Final = (
    f"the grammar is too ambiguous: one token has taken more than {LONGEST_MASK_S} s of processor time. Write rules "
    "that match a text in only one way"
)
_LIMITS: Final = LLParserLimits(step_max_items=10_000, verbose_errors=False)
"""llguidance's default limits, but 50,000 items for a mask, which an ambiguous grammar reaches, take 0.5 s.

Grammars that are not ambiguous need at most a few thousand items. Sequences beyond a limit fail. The
limits count neither the stack nor the work for `multipleOf`. Known members whose mask takes longer are
repeated long literals: up to 3 s, once, after their first token.
"""
_TOO_COMPLEX: Final = (
    f"the grammar is too complex. Compiling it needs more than {_LONGEST_S:g} s of processor time, more than "
    f"{_MOST_BYTES >> 20} MiB of memory, or too long chains of references: use fewer rules and references, and smaller "
    "bounds of lengths, repetitions and multiples"
)
_CODE: Final = "import sys; sys.path[:0] = sys.argv[1:]; from server.engine.sampling.grammar_trial import main; main()"
_LENGTH_BYTES: Final = 8

T = TypeVar("T")
Form = Literal["llguidance", "grammar"]
"""The format of a text: llguidance's own, or Lark or GBNF, whose translation takes time, too."""


class TokenizerSource(NamedTuple):
    """The data of llguidance's tokenizer. Engine and helper process have the same."""

    vocabulary: bytes | None
    """The content of tokenizer.json."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]

    def load(self) -> LLTokenizer:
        """Raises ValueError if there is no vocabulary, or if llguidance cannot read it."""
        if self.vocabulary is None:
            raise ValueError("the model has no tokenizer.json, which llguidance needs")
        eos = list(self.eos_token_ids) or None
        return LLTokenizer(self.vocabulary.decode(), n_vocab=self.vocab_size, eos_token=eos)


def compile_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compiles a grammar in llguidance's format, and computes its first mask.

    Raises:
        ValueError: the grammar is not valid, or exceeds a limit of llguidance.
    """
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # done once for all copies: it takes 100 ms for 40,000 words
    if matcher.is_error():
        raise ValueError(_without_stack(matcher.get_error()))
    return matcher


def compile_tried(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compiles a grammar that has passed its trial, on a thread with the trial's stack."""
    return _run_with_stack(_STACK_BYTES, lambda: compile_matcher(tokenizer, grammar))


def _without_stack(error: str) -> str:
    """Removes the stack of native code from the message of a panic."""
    return error.partition("\n")[0] if error.startswith("panic") else error


class TrialError(ValueError):
    """The trial has refused the grammar, or could not be made, or was cancelled."""


class GrammarTrials:
    """Runs trials in a helper process, which starts with the first trial. Any thread may run one."""

    def __init__(self, executor: Executor, source: TokenizerSource) -> None:
        """A thread of the executor waits for the end of each trial."""
        self.executor = executor
        self._source = source
        self._starting = Lock()
        self._helper: _Helper | None = None

    def begin(self) -> "Trial":
        return Trial(self._connect)

    def close(self) -> None:
        """Ends the helper process. The next trial starts another one."""
        with self._starting:
            self._end_helper()

    def _connect(self) -> socket.socket:
        """Returns a connection to a new fork of the helper process, which waits for the grammar."""
        with self._starting:
            if self._helper is not None and self._helper.process.poll() is not None:
                self._end_helper()
            if self._helper is None:
                self._helper = _start_helper(self._source)
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(self._helper.connection, [b"t"], [theirs.fileno()])
                except OSError:
                    ours.close()
                    raise
            return ours

    def _end_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.end()


class Trial:
    """The trial of one grammar."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self.num_bytes = 0
        """The size of the compiled grammar, once the trial has succeeded."""
        self._connect = connect
        self._changing = Lock()
        self._connection: socket.socket | None = None
        self._has_ended = self._is_cancelled = False

    def run(self, form: Form, text: str) -> str:
        """Waits until the helper process has compiled and used the text. Returns it in llguidance's format.

        Raises:
            TrialError: the grammar is not valid or exceeds a limit, or there is no helper process.
        """
        try:
            with self._connect() as connection:
                self._note(connection)
                try:
                    answer = _ask(connection, json.dumps([form, text]).encode())
                finally:
                    self._note(None)
        except OSError as err:
            raise TrialError(f"the grammar cannot be tried in a process of its own: {err}") from err
        if answer is None:
            raise TrialError(_TOO_COMPLEX)
        if answer["error"] is not None:
            raise TrialError(answer["error"])
        self.num_bytes = answer["num_bytes"]
        return text if answer["grammar"] is None else answer["grammar"]

    def cancel(self) -> bool:
        """Ends the trial, unless it has ended. Returns whether `run` raises TrialError for this reason."""
        with self._changing:
            if self._has_ended:
                return False
            self._is_cancelled = True
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)
            return True

    def _note(self, connection: socket.socket | None) -> None:
        with self._changing:
            self._connection = connection
            self._has_ended = connection is None
            if self._is_cancelled:
                raise TrialError("the request was cancelled")


class _Helper(NamedTuple):
    process: "Popen[bytes]"
    connection: socket.socket

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _start_helper(source: TokenizerSource) -> _Helper:
    folders = dict.fromkeys(str(Path(module).parents[up]) for module, up in ((__file__, 3), (llguidance.__file__, 1)))
    ours, theirs = socket.socketpair()
    ours.settimeout(_LONGEST_WAIT_S)
    try:
        with theirs:
            process = Popen(
                [sys.executable, "-I", "-S", "-c", _CODE, *folders],
                stdin=theirs.fileno(),
                stdout=DEVNULL,
                stderr=DEVNULL,  # messages of a panic contain the grammar
                env=_environment(),
            )
    except OSError:
        ours.close()
        raise
    helper = _Helper(process, ours)
    try:
        _send(ours, json.dumps([source.vocab_size, source.eos_token_ids]).encode())
        _send(ours, source.vocabulary or b"")
    except OSError:
        helper.end()
        raise
    return helper


def _environment() -> dict[str, str]:
    """Only how to find libraries: the helper needs no secrets. An arena per thread would count as memory."""
    libraries = {name: value for name, value in snapshot().items() if name.startswith("LD_")}
    return libraries | {"MALLOC_ARENA_MAX": "1"}


class _Answer(TypedDict):
    error: str | None
    num_bytes: int
    grammar: str | None
    """The grammar in llguidance's format, if the request's text had another one."""


def _ask(connection: socket.socket, grammar: bytes) -> "_Answer | None":
    """Returns the answer of a fork, or None if it has ended without one."""
    connection.settimeout(_LONGEST_WAIT_S)
    try:
        _send(connection, grammar)
        content = _receive(connection)
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        return None
    return None if content is None else json.loads(content)


def main() -> NoReturn:
    """The helper's program. Its standard input is the connection to the engine, which ends it."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text("vllm-grammars", encoding="ascii")
    connection = socket.socket(fileno=0)
    numbers, vocabulary = _receive(connection), _receive(connection)
    if numbers is None or vocabulary is None:
        os._exit(0)
    vocab_size, eos_token_ids = json.loads(numbers)
    tokenizer = TokenizerSource(vocabulary, vocab_size, tuple(eos_token_ids)).load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes ended forks
    while True:
        _, fds, _, _ = socket.recv_fds(connection, 1, 1)
        if not fds:
            os._exit(0)
        with socket.socket(fileno=fds[0]) as trial, suppress(OSError):
            if os.fork() == 0:
                connection.close()
                _try(tokenizer, trial)


def _try(tokenizer: LLTokenizer, connection: socket.socket) -> NoReturn:
    """Runs in a fork: tries the grammar of the connection. Ends when the connection closes."""
    request = _receive(connection)
    if request is not None:
        _limit_this_process()
        Thread(target=_compile_and_answer, args=(tokenizer, *json.loads(request), connection), daemon=True).start()
        poll = select.poll()
        poll.register(connection, select.POLLIN | select.POLLRDHUP)
        poll.poll(_LONGEST_WAIT_S * 1000)
    os._exit(0)


def _limit_this_process() -> None:
    """Lets the kernel end this process beyond its processor time, and refuse memory beyond its limit."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _LONGEST_S)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (min(hard, 1) if hard >= 0 else 1, hard))  # 1: not even through a pipe
    most = _pages(0) * resource.getpagesize() + _MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _compile_and_answer(tokenizer: LLTokenizer, form: Form, text: str, connection: socket.socket) -> NoReturn:
    answer: _Answer = {"error": None, "num_bytes": 0, "grammar": None}
    try:
        grammar = grammar_from(form, text)
        before = _pages(1)
        matchers = [_run_with_stack(_TRIAL_STACK_BYTES, lambda: compile_matcher(tokenizer, grammar))]
        answer["num_bytes"] = max(0, _pages(1) - before) * resource.getpagesize()
        answer["grammar"] = None if grammar == text else grammar
        _run_with_stack(_USE_STACK_BYTES, lambda: _use(matchers))
    except MemoryError:
        os._exit(1)
    except BaseException as err:  # noqa: BLE001 - llguidance's panics are no Exception
        answer["error"] = str(err) or type(err).__name__
    _send(connection, json.dumps(answer).encode())
    os._exit(0)


def _use(matchers: list[LLMatcher]) -> None:
    """Does what the engine does with a matcher: copies it, computes a mask, and frees it."""
    copy = matchers[0].deep_copy()
    begin_s = thread_time()
    copy.compute_bitmask()
    if thread_time() - begin_s > LONGEST_MASK_S:
        raise ValueError(TOO_SLOW)
    matchers.clear()


def _pages(field: int) -> int:
    """The number of this process's pages: field 0 counts all addresses, field 1 the resident ones."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[field])


_starting_thread: Final = Lock()


def _run_with_stack(num_bytes: int, function: Callable[[], T]) -> T:
    """Returns the function's result, which a new thread with a stack of this size computes."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as err:  # noqa: BLE001 - raised below
            result.set_exception(err)

    with _starting_thread:
        before = threading.stack_size(num_bytes)
        try:
            thread = Thread(target=run, name="engine-grammar-stack", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return result.result()


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(len(content).to_bytes(_LENGTH_BYTES, "big"))
    connection.sendall(content)


def _receive(connection: socket.socket) -> bytes | None:
    """Returns the next message, or None if the connection has ended."""
    length = _read(connection, _LENGTH_BYTES)
    return None if length is None else _read(connection, int.from_bytes(length, "big"))


def _read(connection: socket.socket, num_bytes: int) -> bytes | None:
    content = bytearray()
    while len(content) < num_bytes:
        if not (chunk := connection.recv(min(num_bytes - len(content), 1 << 20))):
            return None
        content += chunk
    return bytes(content)
