import pytest

from server.http.transport.added_headers import read_request_id


def read(given: str) -> str | None:
    return read_request_id([(b"host", b"x"), (b"x-request-id", given.encode("latin-1"))])


@pytest.mark.parametrize("given", ["x" * 129, "a b", "a\tb", "<script>", 'a"b', "größe", "a,b", ""])
def test_an_id_unfit_for_headers_and_logs_is_ignored(given):
    assert read(given) is None


@pytest.mark.parametrize(
    "given",
    ["Root=1-67891233-abcdef012345678912345678", "8f3a9c1e-1b2c-4d5e-8f90-123456789abc", "a.b:c/d+e@f~g", "x" * 128],
)
def test_ids_of_proxies_are_fit(given):
    assert read(given) == given
