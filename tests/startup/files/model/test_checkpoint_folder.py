"""Weight files in load order, and which ones are missing."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from startup.files.model.checkpoint_folder import find_weight_files
from startup.files.model.model_place import FolderListing
from startup.files.model.wanted_files import WantedFiles

INDEX = "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
OF_TORCH = [f"pytorch_model-0000{number}-of-00003.bin" for number in (1, 2, 3)]


def make(folder: Path, names: Sequence[str], index: Sequence[str] = (), index_name: str = INDEX) -> Path:
    """Writes empty files, and an index that names these shards."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if index:
        (folder / index_name).write_text(json.dumps({"weight_map": {name: name for name in index}}))
    return folder


def found(folder: Path) -> tuple[list[str], list[str]]:
    """The existing weights, and the missing weights."""
    files = find_weight_files(folder)
    return [str(path.relative_to(folder)) for path in files.present], list(files.missing)


def chosen(folder: Path) -> list[str]:
    """The weights that a start chooses by the names of files, as before a download."""
    listing, wanted = FolderListing(folder), WantedFiles(role="model")
    return wanted.choose_weights(listing.names, listing.weight_map_of(wanted))


@pytest.mark.parametrize(
    ("names", "index", "present", "missing"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"], [], ["model.safetensors"], []),
        (["pytorch_model.bin", "training_args.bin", "tf_model.h5"], [], ["pytorch_model.bin"], []),
        (["consolidated.safetensors", "model.safetensors"], [], ["model.safetensors"], []),
        (["weights.safetensors", "pytorch_model.bin"], [], ["pytorch_model.bin"], []),
        (["b.safetensors", "a.safetensors", "notes.bin"], [], ["a.safetensors", "b.safetensors"], []),
        (["training_args.bin", "notes.txt", "tf_model.h5"], [], [], []),
        ([THREE, ONE, TWO, "consolidated.safetensors"], [THREE, ONE, TWO], [ONE, TWO, THREE], []),
        ([ONE, "model-00001-of-00001.safetensors"], [ONE], [ONE], []),
        ([TWO], [ONE, TWO], [TWO], [ONE]),
        (OF_TORCH[1:2], [], OF_TORCH[1:2], [OF_TORCH[0], OF_TORCH[2]]),
        (["model-1-of-99999999999.safetensors"], [], ["model-1-of-99999999999.safetensors"], []),
    ],
)
def test_the_weights_of_one_format_are_chosen_as_by_transformers(names, index, present, missing, tmp_path):
    """The names of shards without an index say how many there are, unless the number is absurd."""
    make(tmp_path, names, index)
    assert found(tmp_path) == (present, missing)
    assert chosen(tmp_path) == present


def test_a_dangling_link_is_a_missing_shard(tmp_path):
    make(tmp_path, [], [ONE])
    (tmp_path / ONE).symlink_to("gone")
    assert found(tmp_path) == ([], [ONE])


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_invalid_index_counts_as_none(tmp_path, text):
    make(tmp_path, ["model-00001-of-00001.safetensors"])
    (tmp_path / INDEX).write_text(text)
    assert found(tmp_path) == (["model-00001-of-00001.safetensors"], [])
    assert find_weight_files(tmp_path).shard_of == {}


@pytest.mark.parametrize(("index", "end"), [(INDEX, ".safetensors"), ("pytorch_model.bin.index.json", ".bin")])
@pytest.mark.parametrize("names", [["a", "sub/b"], ["x/y/a"], ["model-00001-of-00002", "s/b"]])
def test_the_index_says_where_the_shards_lie(names, index, end, tmp_path):
    shards = [f"{name}{end}" for name in names]
    make(tmp_path, shards, shards, index)
    assert found(tmp_path) == (shards, [])
    assert chosen(tmp_path) == shards
    (tmp_path / shards[-1]).unlink()
    assert found(tmp_path) == (shards[:-1], [shards[-1]])


@pytest.mark.parametrize(
    "shard", ["../out.safetensors", "{}/out.safetensors", "sub/../../out.safetensors", "link/out.safetensors"]
)
def test_an_index_does_not_lead_out_of_the_folder(shard, tmp_path):
    make(tmp_path, ["out.safetensors", "model/sub/file"])
    folder = tmp_path / "model"
    (folder / "link").symlink_to(tmp_path)
    make(folder, [], [shard.format(tmp_path)])
    assert found(folder) == ([], [shard.format(tmp_path)])
    assert FolderListing(folder).names == [INDEX]


def test_a_shard_in_a_subfolder_may_be_a_link_as_in_the_hub_s_cache(tmp_path):
    make(tmp_path, ["blob", "snapshot/sub/file"])
    folder = make(tmp_path / "snapshot", [], ["sub/a.safetensors"])
    (folder / "sub" / "a.safetensors").symlink_to("../../blob")
    assert found(folder) == (["sub/a.safetensors"], [])
