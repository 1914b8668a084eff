"""`vllm-cli bake`: starts a server while an image is built, so that the image's first start has caches."""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from base.wording import format_bytes
from envs.foreign import expand_home
from envs.registry import env
from startup.arguments.errors import InputError
from startup.arguments.option import ServeFlagsCommand, complete_model
from startup.storage.caches import FIXED_PATH, OFF
from vllm_cli.terminal import SECONDS, Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_cli.bake.bake import BakeResult


@click.command(
    "bake",
    cls=ServeFlagsCommand,
    context_settings={"max_content_width": 110},
    options_metavar="[OPTIONS] [SERVE FLAGS]",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL]", shell_complete=complete_model)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    show_default=f"{env.VCLI_BAKED.name}, else {FIXED_PATH}",
    help="Folder to write. An existing folder is replaced.",
)
@click.option(
    *("--compile-cache", "location"),
    metavar="LOCATION",
    help="Add what later starts need to the location of `serve --compile-cache`, instead of writing a folder.",
)
@click.option(
    *("--gpu-arch", "gpu_arch"),
    metavar="LIST",
    help="Without a GPU, compile vLLM's kernels for these compute capabilities, as in TORCH_CUDA_ARCH_LIST.",
)
@click.option(*("--timeout", "timeout_s"), type=SECONDS, default=1800, show_default=True, help="Longest time to start.")
@click.option("--no-start", is_flag=True, help="Only import vLLM, for example on a machine without a GPU.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object.")
def bake(
    *, arguments: tuple[str, ...], output: Path | None, location: str | None, is_json: bool, **options: Any
) -> int:
    """While an image is built, start MODEL once, and keep caches that speed up later starts in one folder.

    Accepts every flag of `vllm-cli serve`. Give the flags of the later starts. The server gets a private
    socket, answers one request and is stopped. On a machine without the GPU that vLLM needs, vLLM is only
    imported. `serve` finds the folder by itself and never writes to it. New caches go to the user's cache
    folder.

    With --compile-cache, the server starts with empty caches and adds to the location of `serve
    --compile-cache` what its first start needs: compiled models, kernels, and what starts learn.

    \b
    Examples:
      vllm-cli bake Qwen/Qwen3-0.6B --max-model-len 8k
      vllm-cli bake /models/llama --engine vllm --output /opt/baked
      vllm-cli bake /models/llama --gpu-arch 9.0
      vllm-cli bake Qwen/Qwen3-0.6B --compile-cache /volume/compiled

    Exit codes: 0 written, and the location has it; 2 usage; 3 the start failed, or not all was written.
    """
    if location is not None:
        if output is not None or options["no_start"]:
            raise InputError("--compile-cache adds to a location: leave --output and --no-start out.")
        return _fill(arguments, location, options["timeout_s"], options["gpu_arch"], is_json=is_json)
    folder = (output or _default_folder()).absolute()
    from vllm_cli.bake.bake import run_bake

    result = run_bake(arguments, folder, **options)
    click.echo(_to_json(result, folder) if is_json else "\n".join(_summary(result, folder)))
    return 0


def _fill(arguments: tuple[str, ...], location: str, timeout_s: float, gpu_arch: str | None, *, is_json: bool) -> int:
    from vllm_cli.bake.fill import fill_location

    with closing(Reporter()) as reporter:
        result = fill_location(arguments, location, timeout_s=timeout_s, gpu_arch=gpu_arch, reporter=reporter)
    if is_json:
        fields = {"location": location, "duration_s": round(result.duration_s, 3), "num_bytes": result.num_bytes}
        click.echo(json.dumps({**fields, "archives": result.archives}, indent=2))
        return 0
    size, took = format_bytes(result.num_bytes), f"{result.duration_s:.1f} s"
    click.echo(f"{location} has what a start needs: {len(result.archives)} archives, {size}, in {took}")
    return 0


def _default_folder() -> Path:
    named = env.VCLI_BAKED.get()
    if named == OFF:
        raise InputError(f"{env.VCLI_BAKED.name} is {OFF}: give --output.")
    return Path(expand_home(named)) if named else FIXED_PATH


def _summary(result: "BakeResult", folder: Path) -> "Iterator[str]":
    total = format_bytes(sum(part.num_bytes for part in result.parts))
    yield f"Baked {folder}: {total} in {result.duration_s:.1f} s"
    for part in result.parts:
        yield f"  {part.name:<18} {len(part.files):>6} files {format_bytes(part.num_bytes):>10}"
    yield from (f"  {name:<18} left out: {reason}" for name, reason in result.manifest.left_out.items())


def _to_json(result: "BakeResult", folder: Path) -> str:
    parts = [{"name": part.name, "num_files": len(part.files), "num_bytes": part.num_bytes} for part in result.parts]
    fields = {"folder": str(folder), "duration_s": round(result.duration_s, 3), "parts": parts}
    return json.dumps({**fields, "left_out": result.manifest.left_out}, indent=2)
