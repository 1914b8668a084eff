"""The socket listens before anything slow happens. An address in use is an error of one line."""

import socket

import pytest

from startup.errors import PortInUseError, StartupError
from startup.port.listener import describe, listen
from tests.support.ports import free_port, needs_ipv6


def test_second_server_on_the_port_fails_with_its_address():
    with listen(host="127.0.0.1", port=0, uds=None) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"127\.0\.0\.1:{port} is in use"):
            listen(host="127.0.0.1", port=port, uds=None)


def test_port_of_a_server_that_has_just_exited_is_free_again():
    port = free_port()  # not handed out to another test meanwhile
    with listen(host="127.0.0.1", port=port, uds=None) as first:
        client = socket.create_connection(first.getsockname())
        first.accept()[0].close()
    client.close()
    listen(host="127.0.0.1", port=port, uds=None).close()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 99999)])
def test_an_address_that_does_not_exist_is_a_startup_error_with_the_address(host, port):
    with pytest.raises(StartupError, match=f"{host}:{port}"):
        listen(host=host, port=port, uds=None)


def test_a_unix_socket_left_behind_is_replaced_and_that_of_a_running_server_is_not(tmp_path):
    path = tmp_path / "server.sock"
    listen(host=None, port=0, uds=str(path)).close()
    assert path.exists()
    with listen(host=None, port=0, uds=str(path)) as listener, pytest.raises(PortInUseError, match="server.sock"):
        assert describe(listener) == f"unix:{path}"
        listen(host=None, port=0, uds=str(path))


def test_unix_socket_of_a_server_with_a_full_queue_is_not_replaced(tmp_path):
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(PortInUseError, match="server.sock"):
            listen(host=None, port=0, uds=str(path))


def test_file_that_is_not_a_socket_is_not_removed(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("keep me")
    with pytest.raises(StartupError):
        listen(host=None, port=0, uds=str(path))
    assert path.read_text() == "keep me"


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "http://127.0.0.1:"), pytest.param("::1", "http://[::1]:", marks=needs_ipv6)],
)
def test_address_is_shown_as_a_url(host, shown):
    with listen(host=host, port=0, uds=None) as listener:
        assert describe(listener).startswith(shown)
