"""What is baked: the words of the start at build time, and whether packages have bytecode of their own."""

import compileall

import pytest

from vllm_cli.bake.subject import has_own_bytecode, without_addresses


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("model", "--port", "8000", "--max-model-len", "4k"), ("model", "--max-model-len", "4k")),
        (("--host=0.0.0.0", "model"), ("model",)),
        (("model", "--ssl_keyfile", "k.pem", "--ssl-certfile=c.pem"), ("model",)),
        (("model", "--api-key", "--enforce-eager"), ("model", "--enforce-eager")),
        (("model", "--enforce-eager", "-tp", "2"), ("model", "--enforce-eager", "-tp", "2")),
        (("model", "--api-key", "a", "b", "--dtype=auto"), ("model", "--dtype=auto")),
        (("model", "--api_k=a", "--por", "1", "--no-such-flag", "x"), ("model", "--no-such-flag", "x")),
        (("--dtype", "auto", "--", "--port"), ("--dtype", "auto", "--", "--port")),
    ],
    ids=["port", "attached", "certificate", "no-value", "others", "several-keys", "abbreviated", "after-dashes"],
)
def test_addresses_and_keys_are_left_out(words, kept):
    assert without_addresses(words) == kept


def test_a_package_counts_as_compiled_if_most_of_its_modules_are(tmp_path, monkeypatch):
    package = tmp_path / "parcel"
    package.mkdir()
    for name in ("__init__", "a", "b"):
        (package / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_own_bytecode(("parcel",))
    compileall.compile_dir(package, quiet=1)
    assert has_own_bytecode(("parcel",))


def test_a_package_that_is_not_installed_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert has_own_bytecode(("no-such-package",))
    (tmp_path / "a.py").touch()
    assert not has_own_bytecode(("no-such-package",))
