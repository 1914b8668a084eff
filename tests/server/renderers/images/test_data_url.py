"""`data:` URLs: decoding, and errors of malformed ones."""

import base64
import os

import pytest

from server.renderers.images.fetcher import MediaError
from server.renderers.images.loader import decode_data_url

_LARGE = 1 << 24


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 1000, 3 << 17, 1_000_003])
def test_a_data_url_is_decoded_to_its_bytes(num_bytes):
    data = os.urandom(num_bytes)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert decode_data_url(url, max_bytes=_LARGE) == data


@pytest.mark.parametrize("header", ["data:;base64", "DATA:image/png;BASE64", "data:image/png;name=x;base64"])
def test_the_media_type_does_not_matter(header):
    assert decode_data_url(f"{header},aGk=", max_bytes=_LARGE) == b"hi"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png,hello", "must be base64"),
        ("data:text/plain;charset=utf-8,hello", "must be base64"),
        ("data:;base64,aGk", "not valid base64"),
        ("data:;base64,aG k=", "not valid base64"),
        ("data:;base64,aGk=\n", "not valid base64"),
        ("data:;base64,a-_=", "not valid base64"),
        ("data:;base64,aGk=aGk=", "not valid base64"),
        ("data:;base64,äääa", "not valid base64"),
        ("data:;base64," + "aGk=" + "A" * (1 << 19), "not valid base64"),
    ],
)
def test_a_malformed_data_url_is_rejected(url, message):
    with pytest.raises(MediaError, match=message):
        decode_data_url(url, max_bytes=_LARGE)


def test_more_bytes_than_allowed_are_rejected_before_decoding():
    with pytest.raises(MediaError, match="larger than 999 bytes"):
        decode_data_url("data:;base64," + "!" * 1400, max_bytes=999)
    assert len(decode_data_url("data:;base64," + "A" * 1332, max_bytes=999)) == 999
