"""Every fault of a broken model folder is reported with its value and fix, without reading the weights."""

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest

from startup.session.preflight.report import PreflightReport
from tests.support.page_cache import counting_bytes_read

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"


def messages(report: PreflightReport, check: str) -> list[str]:
    return [finding.message for finding in report.errors if finding.check == check]


def rewrite_header(path: Path, header: object) -> None:
    raw = path.read_bytes()
    data = raw[8 + struct.unpack("<Q", raw[:8])[0] :]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_complete_folder_has_no_findings(folder, preflight):
    assert {f.severity for f in preflight(folder.path).findings} == {"info"}


def test_real_model_has_no_findings(model_path, preflight):
    assert {f.severity for f in preflight(model_path).findings} == {"info"}


def test_a_truncated_shard_is_reported_with_both_sizes(folder, preflight):
    size = folder.shards[1].stat().st_size
    with folder.shards[1].open("r+b") as file:
        file.truncate(size - 100)
    (message,) = messages(preflight(folder.path), "weights")
    assert folder.shards[1].name in message
    assert f"calls for {size} bytes, the file has {size - 100}" in message


def test_a_shard_that_is_too_long_is_reported_with_both_sizes(folder, preflight):
    size = folder.shards[0].stat().st_size
    with folder.shards[0].open("ab") as file:
        file.write(b"more")
    (message,) = messages(preflight(folder.path), "weights")
    assert f"is too long: its header calls for {size} bytes, the file has {size + 4}" in message


def test_shard_cut_off_within_its_header_is_truncated(folder, preflight):
    with folder.shards[0].open("r+b") as file:
        file.truncate(40)
    assert "is truncated: the header alone needs" in messages(preflight(folder.path), "weights")[0]


def test_a_file_of_another_format_is_not_read_as_a_huge_header(folder, preflight):
    folder.shards[0].write_bytes(b"<html>not found</html>")
    assert "is not a safetensors file" in messages(preflight(folder.path), "weights")[0]


def test_a_header_that_is_not_json_is_corrupt(folder, preflight):
    raw = bytearray(folder.shards[0].read_bytes())
    raw[8] = ord("]")
    folder.shards[0].write_bytes(raw)
    assert "has a corrupt header" in messages(preflight(folder.path), "weights")[0]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16"},
        {"dtype": "BF16", "shape": [1], "data_offsets": [2, 0]},
        {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]},
        "x",
    ],
)
def test_an_invalid_tensor_entry_is_a_corrupt_header(folder, preflight, entry):
    rewrite_header(folder.shards[0], {"layer0.a": entry})
    assert "has a corrupt header: tensor 'layer0.a'" in messages(preflight(folder.path), "weights")[0]


def test_all_missing_shards_are_reported_at_once(folder, preflight):
    folder.shards[0].unlink()
    folder.shards[2].unlink()
    (message,) = messages(preflight(folder.path), "shards")
    assert "lacks 2 of 3 shards" in message
    assert folder.shards[0].name in message
    assert folder.shards[2].name in message


def test_complete_shards_still_need_their_index(folder, preflight):
    folder.index.unlink()
    assert "3 shards but no index" in messages(preflight(folder.path), "index")[0]


def test_an_index_of_another_download_is_reported(folder, preflight):
    folder.write_index({"layer0.a": folder.shards[1].name, "layer1.a": folder.shards[1].name})
    (message,) = messages(preflight(folder.path), "index")
    assert f"lists 1 tensors that {folder.shards[1].name} does not have (layer0.a)" in message


def test_an_index_without_a_weight_map_is_reported(folder, preflight):
    folder.index.write_text("{}")
    assert "has no weight_map" in messages(preflight(folder.path), "index")[0]


def test_an_lfs_pointer_is_reported_with_the_size_of_the_real_file(folder, preflight):
    folder.shards[0].write_bytes(POINTER)
    report = preflight(folder.path)
    (message,) = messages(report, "lfs")
    assert "4976698672 bytes" in message
    assert "git lfs pull" in message
    assert not messages(report, "weights")


@pytest.mark.parametrize(("name", "check"), [("tokenizer.json", "json"), ("tokenizer.model", "lfs")])
def test_a_tokenizer_that_is_an_lfs_pointer_is_reported(folder, preflight, name, check):
    (folder.path / name).write_bytes(POINTER)
    assert f"{name} is a Git LFS pointer" in messages(preflight(folder.path), check)[0]


def test_mistral_s_own_tokenizer_is_read_and_grok_2_s_needs_vllm(folder, preflight):
    (folder.path / "tokenizer.json").rename(folder.path / "tekken.json")
    assert messages(preflight(folder.path), "tokenizer") == []
    (folder.path / "tekken.json").rename(folder.path / "tokenizer.tok.json")
    (message,) = messages(preflight(folder.path), "tokenizer")
    assert "Grok-2" in message
    assert "--engine vllm" in message
    (folder.path / "tokenizer.tok.json").rename(folder.path / "tokenizer.json")
    (folder.path / "config.json").write_text("{oops")
    assert messages(preflight(folder.path), "tokenizer") == [], "a broken file is reported once"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_shard_is_reported_with_the_reason(folder, preflight):
    folder.shards[0].chmod(0)
    (message,) = messages(preflight(folder.path), "weights")
    assert "cannot be read: Permission denied: give this user the right to read it" in message


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_broken_json_is_reported_with_its_line(folder, preflight, name):
    (folder.path / name).write_text('{\n  "a": 1,\n  "b": }')
    (message,) = messages(preflight(folder.path), "json")
    assert f"{name} is not JSON" in message
    assert "line 3" in message


@pytest.mark.parametrize("content", [b'{"a": NaN}', "{}".encode("utf-16"), b' {"a": 1}', '{"a": "é🙂"}'.encode()])
def test_unusual_json_is_no_fault(folder, preflight, content):
    (folder.path / "tokenizer_config.json").write_bytes(content)
    assert messages(preflight(folder.path), "json") == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"a": "' + b"x" * 70_000 + b'\xff"}', "is not text"),
        (b'{"a": "x"', "line 1"),
        (b'[{"a": 1}]', "is not a JSON object"),
        (b'{"a": {"b": tru}}', "line 1"),
    ],
)
def test_faults_of_json_files(folder, preflight, content, fault):
    (folder.path / "tokenizer.json").write_bytes(content)
    assert fault in messages(preflight(folder.path), "json")[0]


def test_a_truncated_tokenizer_too_long_to_be_parsed_is_reported(folder, preflight):
    (folder.path / "tokenizer.json").write_bytes(b'{"model": "' + b"x" * 17_000_000)
    assert "tokenizer.json is truncated" in messages(preflight(folder.path), "json")[0]


@pytest.mark.parametrize("text", ["", "[]", "\xff\xfe", '{"model_type": '])
def test_a_config_that_is_not_a_json_object_is_reported(folder, preflight, text):
    (folder.path / "config.json").write_text(text, encoding="latin-1")
    assert "config.json is not" in messages(preflight(folder.path), "config")[0]


def test_a_config_without_a_model_type_is_reported(folder, preflight):
    (folder.path / "config.json").write_text('{"hidden_size": 8}')
    assert "names neither model_type nor architectures" in messages(preflight(folder.path), "config")[0]


def test_an_empty_folder_lacks_config_weights_and_tokenizer(tmp_path, preflight):
    assert {finding.check for finding in preflight(tmp_path).errors} == {"config", "no_weights", "tokenizer"}


def test_a_real_torch_file_has_no_errors(folder, preflight):
    import torch

    remove_safetensors(folder)
    torch.save({"a": torch.zeros(100_000)}, folder.path / "pytorch_model.bin")
    assert preflight(folder.path).errors == ()


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_truncated_torch_file_is_reported(folder, preflight, cut):
    remove_safetensors(folder)
    path = folder.path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 1000)
    path.write_bytes(path.read_bytes()[:-cut])
    assert "is truncated" in messages(preflight(folder.path), "weights")[0]


def test_a_torch_file_of_another_format_is_reported(folder, preflight):
    remove_safetensors(folder)
    (folder.path / "pytorch_model.bin").write_bytes(b"<html>")
    assert "is not a PyTorch checkpoint: it has 6 bytes" in messages(preflight(folder.path), "weights")[0]


def test_weights_of_a_terabyte_are_not_read(folder, preflight):
    header = {"huge": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}
    remove_safetensors(folder)
    path = folder.path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + (1 << 40))
    with counting_bytes_read() as read:
        report = preflight(folder.path)
    assert not messages(report, "weights")
    assert read.num_bytes < 64 << 20


def remove_safetensors(folder) -> None:
    for path in (folder.index, *folder.shards):
        path.unlink()
