"""Client certificates: clients with untrusted issuers are rejected, even with an earlier TLS session."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.config import ServerConfig
from server.security.tls import RenewableTls
from tests.certificates import Certificate, make_certificate, needs_openssl

pytestmark = needs_openssl

Ask = Callable[[ssl.SSLContext, ssl.SSLSession | None], ssl.SSLSession | None]
"""Opens and closes one connection and returns its session for resumption; SSLError if rejected."""


@pytest.fixture
def server(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, "server")


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """The file of trusted issuers."""
    return tmp_path / "trusted.crt"


@pytest.fixture
def clients(tmp_path: Path, trusted: Path) -> Iterator[tuple[Certificate, Certificate]]:
    """Two issuers, the first of which is trusted."""
    signers = make_certificate(tmp_path, "one"), make_certificate(tmp_path, "two")
    shutil.copyfile(signers[0].certificate, trusted)
    yield signers


@pytest.fixture
def tls(server: Certificate, trusted: Path, clients: object) -> RenewableTls:
    files = {
        "ssl_certfile": str(server.certificate),
        "ssl_keyfile": str(server.key),
        "ssl_ca_certs": str(trusted),
    }
    return RenewableTls(ServerConfig(served_model_names=("m",), ssl_cert_reqs=2, enable_ssl_refresh=True, **files))


@pytest.fixture
def ask(tls: RenewableTls) -> Iterator[Ask]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, tls))
        thread.start()

        def ask(context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession:
            plain = socket.create_connection(listener.getsockname(), timeout=60)
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as client:
                client.sendall(b"x")
                if client.recv(1) != b"y":
                    raise ssl.SSLError("rejected after the client's part of the handshake")
                session = client.session
                client.unwrap()
                return session

        yield ask
        socket.create_connection(listener.getsockname()).close()  # a connection without data ends the server
        thread.join()


def _serve(listener: socket.socket, tls: RenewableTls) -> None:
    """Serves until a client connects and sends nothing."""
    while True:
        plain, _ = listener.accept()
        with plain:
            if not plain.recv(1, socket.MSG_PEEK):
                return
            try:
                with tls.context.wrap_socket(plain, server_side=True) as client:
                    client.sendall(b"y" * len(client.recv(1)))
                    client.unwrap()
            except OSError:
                continue


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_client_whose_issuer_is_no_longer_trusted_is_rejected(
    version: ssl.TLSVersion,
    ask: Ask,
    tls: RenewableTls,
    server: Certificate,
    clients: tuple[Certificate, Certificate],
    trusted: Path,
    tmp_path: Path,
) -> None:
    contexts = []
    for index, signer in enumerate(clients):
        context = server.client_context(make_certificate(tmp_path, f"client-{index}", signer=signer))
        context.minimum_version = context.maximum_version = version
        contexts.append(context)
    former, later = contexts
    session = ask(former, None)
    with pytest.raises(OSError):
        ask(later, None)
    shutil.copyfile(clients[1].certificate, trusted)
    tls.reload()
    ask(later, None)
    with pytest.raises(OSError):
        ask(former, None)
    with pytest.raises(OSError):
        ask(former, session)
