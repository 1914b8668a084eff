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


@pytest.mark.parametrize("num_bytes", [0, 1, 4 << 20])
def test_a_message_longer_than_the_sockets_buffer_arrives_with_its_descriptors(num_bytes: int) -> None:
    ours, theirs = socket.socketpair()
    received: list[list[list[bytes]]] = []
    receiver = threading.Thread(target=_receive_and_close, args=(theirs, received))
    receiver.start()
    with ours, DEVNULL.open("rb") as file:
        messages.send(ours, [b"x" * num_bytes], fds=[file.fileno(), file.fileno()])
    receiver.join()
    assert received == [[[b"x" * num_bytes]]]


def _receive_and_close(connection: socket.socket, received: list[list[list[bytes]]]) -> None:
    with connection:
        sections, fds = messages.receive(connection)
        messages.close_all(fds)
        received.append(sections)
