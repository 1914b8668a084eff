"""A message with descriptors is sent once and completely, whatever the receiver does next."""

import os
import socket
import threading
from pathlib import Path

import pytest

from startup.processes import messages

DEVNULL = Path(os.devnull)
NUM_MESSAGES = 300


def test_a_receiver_may_close_as_soon_as_it_has_the_message() -> None:
    for _ in range(NUM_MESSAGES):  # a second, empty send fails if the receiver is faster
        ours, theirs = socket.socketpair()
        received: list[list[list[bytes]]] = []
        receiver = threading.Thread(target=_receive_and_close, args=(theirs, received))
        receiver.start()
        with ours, DEVNULL.open("rb") as file:
            messages.send(ours, [b"words"], fds=[file.fileno()])
        receiver.join()
        assert received == [[[b"words"]]]


def test_a_message_that_was_sent_whole_is_not_followed_by_an_empty_send() -> None:
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
def test_a_message_arrives_as_it_was_sent(sections: list[list[bytes]]) -> None:
    ours, theirs = socket.socketpair()
    received: list[list[list[bytes]]] = []
    receiver = threading.Thread(target=_receive_and_close, args=(theirs, received))
    receiver.start()
    with ours, DEVNULL.open("rb") as file:
        messages.send(ours, *sections, fds=[file.fileno(), file.fileno()])
    receiver.join()
    assert received == [sections]


def _receive_and_close(connection: socket.socket, received: list[list[list[bytes]]]) -> None:
    with connection:
        sections, fds = messages.receive(connection)
        assert len(fds) in (1, 2)
        messages.close_all(fds)
        received.append(sections)
