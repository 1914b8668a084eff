"""Only a socket that binds the listener's address becomes the listener."""

import socket
from collections.abc import Iterator

import pytest

from startup.vllm.patches.port import reuse_listener


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield bound


def _accepts(server: socket.socket, address: tuple[str, int] | str) -> bool:
    with socket.socket(server.family) as client:
        client.connect(address)
        accepted, _ = server.accept()
        accepted.close()
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_socket_that_binds_the_address_becomes_the_listener(host, listener):
    address = listener.getsockname()
    with reuse_listener(listener), socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, address[1]))
        assert taken.getsockname() == address
        assert not taken.get_inheritable()
        assert _accepts(taken, address)


def test_an_empty_host_matches_every_address():
    with socket.create_server(("0.0.0.0", 0)) as listener, reuse_listener(listener), socket.socket() as taken:
        port = listener.getsockname()[1]
        taken.bind(("", port))
        assert _accepts(taken, ("127.0.0.1", port))


def test_a_unix_socket_matches_by_its_path(folder):
    path = str(folder / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as taken:
        listener.bind(path)
        listener.listen()
        with reuse_listener(listener):
            taken.bind(path)
        assert _accepts(taken, path)


def test_other_addresses_and_kinds_are_bound_normally(listener):
    port = listener.getsockname()[1]
    with reuse_listener(listener), socket.socket() as other, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        other.bind(("127.0.0.1", 0))
        assert other.getsockname()[1] != port
        datagrams.bind(("127.0.0.1", port))
        assert datagrams.getsockname()[1] == port


def test_binding_the_address_fails_after_the_block(listener):
    with reuse_listener(listener):
        pass
    with socket.socket() as other, pytest.raises(OSError, match="already in use"):
        other.bind(listener.getsockname())


def test_an_unknown_host_is_the_binders_error(listener):
    with reuse_listener(listener), socket.socket() as other, pytest.raises(OSError):
        other.bind(("no-such-name.invalid", listener.getsockname()[1]))
