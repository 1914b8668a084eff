"""Names as other tools write them: what the error says to write instead."""

import pytest

from startup.files.model.model_name import is_hub_id, other_form, unread_problem

HUB = "https://huggingface.co/org/name"


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("hf.co/user/repo:Q4_K_M", "user/repo:Q4_K_M"),
        ("huggingface.co/user/repo:UD-Q4_K_XL", "user/repo:UD-Q4_K_XL"),
        (HUB, "org/name"),
        (f"{HUB}/", "org/name"),
        (f"{HUB}.git", "org/name"),
        ("HTTPS://www.HuggingFace.co/Org/Name_1.5", "Org/Name_1.5"),
        ("https://hf-mirror.com/org/name", "org/name"),
        ("http://mirror:8080/org/name", "org/name"),
        ("https://huggingface.co/gpt2", "gpt2"),
        (f"{HUB}/tree/main", "org/name"),
        (f"{HUB}/tree/v2", "org/name --revision v2"),
        (f"{HUB}/tree/refs%2Fpr%2F3", "org/name --revision refs/pr/3"),
        (f"{HUB}/blob/main/config.json", "org/name"),
        (f"{HUB}/resolve/v2/model.safetensors?download=true", "org/name --revision v2"),
        (f"{HUB}/blob/main/Model-Q4_K_M.gguf", "org/name:Q4_K_M"),
        (f"{HUB}/resolve/main/sub/M-UD-Q4_K_XL-00001-of-00003.gguf?download=true", "org/name:UD-Q4_K_XL"),
        ("hf://org/name", "org/name"),
        ("hf:org/name:Q8_0", "org/name:Q8_0"),
        ("org/name/tree/main", "org/name"),
        ("org/name@main", "org/name"),
        ("org/name@v1.0", "org/name --revision v1.0"),
        ("org/name:v1.0", "org/name --revision v1.0"),
        ("org/name:main", "org/name"),
        ("org/name:refs/pr/1", "org/name --revision refs/pr/1"),
        (f"org/name:{'0a' * 20}", f"org/name --revision {'0a' * 20}"),
        ("org/name/", "org/name"),
        ("'org/name'", "org/name"),
        (' "org/name" ', "org/name"),
        ("org\\name", "org/name"),
    ],
)
def test_the_words_to_write_instead(name, instead, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8080")
    assert other_form(name).endswith(f": write {instead}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ollama://llama3", "a name of Ollama"),
        ("ollama.com/library/llama3", "a name of Ollama"),
        ("https://ollama.com/library/llama3:8b", "a name of Ollama"),
        ("llama3:latest", "a name of Ollama"),
        ("library/llama3:8b", "a name of Ollama"),
        ("docker.io/ai/smollm2", "llama-server -dr ai/smollm2 "),
        ("docker://ai/smollm2:135M-Q4_0", "llama-server -dr ai/smollm2:135M-Q4_0 "),
        ("https://hub.docker.com/r/ai/smollm2", "llama-server -dr ai/smollm2 "),
        ("modelscope://org/name", "VLLM_USE_MODELSCOPE=1, and write org/name --engine vllm"),
        (
            "https://www.modelscope.cn/models/org/name/summary",
            "VLLM_USE_MODELSCOPE=1, and write org/name --engine vllm",
        ),
        ("https://github.com/org/name", "download the model"),
        ("https://huggingface.co/datasets/org/name", "OWNER/MODEL"),
        ("C:\\models\\x", "/mnt/c/models/x"),
        ("D:/models/x", "/mnt/d/models/x"),
    ],
)
def test_what_is_no_name_of_the_hub(name, text):
    assert text in (other_form(name) or "")


@pytest.mark.parametrize(
    "name",
    [
        *("org/name", "gpt2", "_org/Name_1.5-x", "team/M-GGUF:Q4_K_M", "team/M-GGUF:UD-Q4_K_XL", "team/M-GGUF:v1.0"),
        *("s3://bucket/model", "gs://bucket/model", "az://account/model", "/models/x", "/models/x@1/y"),
        *("~/model", "file:///models/x", "runai://x", "", "org/name:Q4_K_M", "models/old/raw", "./a/tree/main/x"),
    ],
)
def test_other_names_are_left_alone(name):
    assert other_form(name) is None


def test_a_quoted_path_is_written_without_its_quotes(tmp_path):
    assert (other_form(f'"{tmp_path}"') or "").endswith(f": write {tmp_path}")


_PARTS = ("Q4_K_M", "q4_k_m", "UD-Q4_K_XL", "UD-IQ1_S", "I-COMPACT", "Qwen3-0.6B.Q8_0", "MXFP4_MOE", "a+b")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((f"unsloth/Qwen3-0.6B-GGUF:{part}", f"-hf unsloth/Qwen3-0.6B-GGUF:{part}") for part in _PARTS),
        *((name, f"-hf {name}") for name in ("t_1/m.x_GGUF:i1-Q4_K_M", "t/MODEL.gguf:Q8_0", "team/m-gguf")),
        ("/models/no.gguf", "-m /models/no.gguf"),
        ("a b.GGUF", "-m 'a b.GGUF'"),
        ("blob", "-m blob"),
        ("folder", "-m folder/a.gguf"),
    ],
)
def test_a_gguf_model_is_llama_servers(name, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "folder").mkdir()
    for file in ("b.gguf", "a.gguf", "._a.gguf", "config.json"):
        (tmp_path / "folder" / file).touch()
    assert (unread_problem(name) or "").endswith(
        f": start llama.cpp's server by `cmd: llama-server --port ${{PORT}} {arguments}` in a file for --models"
    )


@pytest.mark.parametrize(
    "name",
    [
        *("team/model", "team/model:main", "llama3:8b", "ollama.com/x:8b", "team/a b:Q4", "team/m:refs/pr/1", "gguf"),
        *("https://host/model", "file:///models/m", "team/m-gguf", "mixed", "."),
    ],
)
def test_other_models_are_not(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("team/m-gguf", "mixed"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("a.gguf", "model.safetensors"):
        (tmp_path / "mixed" / file).touch()
    assert unread_problem(name) is None


def test_names_that_the_hub_accepts():
    assert all(map(is_hub_id, ["org/name", "Org_1/name.v1", "_o/n", "9x"]))
    assert not any(map(is_hub_id, ["hf.co/name", "docker.io/ai", "a/b/c", "a b", "-a/b", ".a"]))
