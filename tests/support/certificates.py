"""Certificates for tests, made with the program `openssl`."""

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.marks import needs_tool

needs_openssl = needs_tool("openssl")

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Certificate(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def flags(self) -> list[str]:
        return ["--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(self.key)]

    def client_context(self, client: "Certificate | None" = None) -> ssl.SSLContext:
        """The context of a client that trusts only this certificate, and presents `client` if it is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.certificate)
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return context


def make_certificate(
    folder: Path,
    name: str,
    *extensions: str,
    names: str = "DNS:localhost,IP:127.0.0.1",
    signer: Certificate | None = None,
) -> Certificate:
    """Makes a certificate for the hosts `names`. Without a `signer`, the certificate signs itself."""
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    arguments = ["req", "-x509", *_CURVE, "-subj", f"/CN={name}", "-days", "30", "-keyout", str(made.key)]
    added = [argument for extension in (f"subjectAltName={names}", *extensions) for argument in ("-addext", extension)]
    by = [] if signer is None else ["-CA", str(signer.certificate), "-CAkey", str(signer.key)]
    _openssl(*arguments, "-out", str(made.certificate), *added, *by)
    made.key.chmod(0o600)
    return made


def encrypt_key(key: Path, *, traditional: bool = False) -> None:
    kind = ["ec", "-aes256"] if traditional else ["pkcs8", "-topk8"]
    _openssl(*kind, "-in", str(key), "-out", f"{key}.new", "-passout", "pass:sesame")
    Path(f"{key}.new").replace(key)
    key.chmod(0o600)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL)
