"""A fake S3 server in the test's process, with the bucket `models`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tests.support.http_client import ask

SECRET: Final = "s3-secret"


class S3Server:
    """Tests write objects with `put`. Programs read them with the variables in `environment`."""

    def __init__(self, url: str, client: Any) -> None:
        self.environment = _settings(url)
        self._client = client

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            self._client.put_object(Bucket="models", Key=key, Body=body)

    def names(self) -> list[str]:
        """The names of all objects."""
        return [found["Key"] for found in self._client.list_objects_v2(Bucket="models").get("Contents", [])]


@contextmanager
def s3_server() -> Iterator[S3Server]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    settings = _settings(url)
    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRET,
        region_name=settings["AWS_DEFAULT_REGION"],
    )
    ask(f"{url}/moto-api/reset", {})  # all servers of a process share their objects
    try:
        client.create_bucket(Bucket="models")
        yield S3Server(url, client)
    finally:
        client.close()
        server.stop()


def _settings(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
