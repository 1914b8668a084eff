"""Client certificates: clients with untrusted issuers are rejected, even with an earlier TLS session."""

import shutil
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from base.security.tls import RenewableTls
from base.server_settings import TlsConfig
from tests.support.certificates import make_certificate, needs_openssl

pytestmark = needs_openssl


@contextmanager
def _serving(tls: RenewableTls):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(_serve, listener, tls)

        def connect(context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession:
            plain = socket.create_connection(listener.getsockname(), timeout=60)
            with context.wrap_socket(plain, server_hostname="localhost", session=session) as client:
                client.sendall(b"x")
                if client.recv(1) != b"y":
                    raise ssl.SSLError("rejected after the client's part of the handshake")
                session = client.session
                client.unwrap()
                return session

        try:
            yield connect
        finally:
            socket.create_connection(listener.getsockname()).close()  # a connection without data ends the server
            serving.result()


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
def test_a_client_whose_issuer_is_no_longer_trusted_is_rejected(version, tmp_path):
    server, *issuers = (make_certificate(tmp_path, name) for name in ("server", "one", "two"))
    contexts = []
    for issuer in issuers:
        context = server.client_context(make_certificate(tmp_path, f"client-{len(contexts)}", signer=issuer))
        context.minimum_version = context.maximum_version = version
        contexts.append(context)
    former, later = contexts
    trusted = shutil.copyfile(issuers[0].certificate, tmp_path / "trusted.crt")
    files = {"ssl_certfile": str(server.certificate), "ssl_keyfile": str(server.key), "ssl_ca_certs": str(trusted)}
    tls = RenewableTls(TlsConfig(ssl_cert_reqs=2, enable_ssl_refresh=True, **files))
    with _serving(tls) as connect:
        session = connect(former, None)
        with pytest.raises(OSError):
            connect(later, None)
        shutil.copyfile(issuers[1].certificate, trusted)
        tls.reload()
        connect(later, None)
        with pytest.raises(OSError):
            connect(former, None)
        with pytest.raises(OSError):
            connect(former, session)
