"""Weight files are found in load order. Missing files are listed."""

import json
from pathlib import Path

import pytest

from startup.files.model.checkpoint_folder import find_weight_files
from startup.files.model.model_place import FolderListing
from startup.files.model.wanted_files import WantedFiles


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def write_index(folder: Path, *shards: str) -> None:
    content = {"weight_map": {f"tensor{i}": shard for i, shard in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def present(folder: Path) -> list[str]:
    return [path.name for path in find_weight_files(folder).present]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (["consolidated.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["b.safetensors", "a.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["training_args.bin", "notes.txt"], []),
    ],
)
def test_one_format_is_chosen_as_by_transformers(tmp_path, names, expected):
    make(tmp_path, *names)
    assert present(tmp_path) == expected


def test_shards_are_ordered_by_name(tmp_path):
    shards = [f"model-{i:05}-of-00003.safetensors" for i in (3, 1, 2)]
    make(tmp_path, *shards)
    write_index(tmp_path, *shards)
    assert present(tmp_path) == sorted(shards)


def test_shards_that_the_index_does_not_name_are_ignored(tmp_path):
    make(tmp_path, "model-00001-of-00002.safetensors", "model-00001-of-00001.safetensors")
    write_index(tmp_path, "model-00001-of-00001.safetensors")
    assert present(tmp_path) == ["model-00001-of-00001.safetensors"]


def test_missing_shards_are_those_that_the_index_names(tmp_path):
    write_index(tmp_path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    make(tmp_path, "model-00002-of-00002.safetensors")
    assert find_weight_files(tmp_path).missing == ("model-00001-of-00002.safetensors",)


def test_missing_shards_without_an_index_follow_from_the_numbers(tmp_path):
    make(tmp_path, "pytorch_model-00002-of-00003.bin")
    assert find_weight_files(tmp_path).missing == (
        "pytorch_model-00001-of-00003.bin",
        "pytorch_model-00003-of-00003.bin",
    )


def test_a_dangling_link_is_a_missing_shard(tmp_path):
    write_index(tmp_path, "model-00001-of-00001.safetensors")
    (tmp_path / "model-00001-of-00001.safetensors").symlink_to("gone")
    assert find_weight_files(tmp_path).missing == ("model-00001-of-00001.safetensors",)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_invalid_index_counts_as_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    make(tmp_path, "model-00001-of-00001.safetensors")
    files = find_weight_files(tmp_path)
    assert files.shard_of == {}
    assert present(tmp_path) == ["model-00001-of-00001.safetensors"]


def test_an_absurd_number_of_shards_is_not_enumerated(tmp_path):
    make(tmp_path, "model-1-of-99999999999.safetensors")
    assert find_weight_files(tmp_path).missing == ()


def below(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """The existing weights with their subfolders, and the missing weights."""
    files = find_weight_files(folder)
    return [str(path.relative_to(folder)) for path in files.present], files.missing


@pytest.mark.parametrize(
    ("index", "end"), [("model.safetensors.index.json", ".safetensors"), ("pytorch_model.bin.index.json", ".bin")]
)
@pytest.mark.parametrize("names", [["a", "sub/b"], ["sub/a", "sub/b"], ["x/y/a"], ["model-00001-of-00002", "s/b"]])
def test_the_index_says_where_the_shards_lie(names, index, end, tmp_path):
    shards = [f"{name}{end}" for name in names]
    for shard in shards:
        (tmp_path / shard).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / shard).touch()
    (tmp_path / index).write_text(json.dumps({"weight_map": {name: name for name in shards}}))
    assert below(tmp_path) == (sorted(shards), ())
    listing, wanted = FolderListing(tmp_path), WantedFiles(role="model")
    assert {*listing.names} == {index, *shards}
    assert wanted.choose_weights(listing.names, listing.weight_map_of(wanted)) == sorted(shards)
    (tmp_path / shards[-1]).unlink()
    assert below(tmp_path) == (sorted(shards[:-1]), (shards[-1],))


@pytest.mark.parametrize(
    "shard", ["../out.safetensors", "{}/out.safetensors", "sub/../../out.safetensors", "link/out.safetensors"]
)
def test_an_index_does_not_lead_out_of_the_folder(shard, tmp_path):
    (tmp_path / "out.safetensors").touch()
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    shard = shard.format(tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert below(folder) == ([], (shard,))
    assert FolderListing(folder).names == ["model.safetensors.index.json"]


def test_a_shard_in_a_subfolder_may_be_a_link_as_in_the_hub_s_cache(tmp_path):
    (tmp_path / "blob").touch()
    folder = tmp_path / "snapshot"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.safetensors").symlink_to("../../blob")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"t": "sub/a.safetensors"}}')
    assert below(folder) == (["sub/a.safetensors"], ())
