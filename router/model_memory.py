"""Reads free memory, and measures or estimates the memory of models.

A model sleeps at one of vLLM's two levels. At level 1 its weights are in the machine's memory. At level 2
they are dropped. Level 0 means that the model is awake.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from base.machine.file_stamps import FileStamp, FolderStamps, read_folder, read_stamp
from base.machine.memory import read_memory
from base.machine.nvml import Gpu, keep_driver_open, read_gpus
from base.machine.processes import descendants, pss_bytes
from envs import foreign
from router.model_entry import ModelEntry
from router.scheduling.terms import NOTHING, Need
from server.terms.config import EngineConfig
from server.text.model_files import accepts_images
from startup.files.model.checkpoint_folder import find_weight_files, shard_names
from startup.files.model.file_faults import read_json_object
from startup.imports.torch_environment import expects_gpu
from startup.session.preflight.checkpoint import read_checkpoint
from startup.session.preflight.memory_fit import PROGRAM_BYTES, loaded_bytes
from startup.settings.flag import parse_size

_VLLM_BYTES: Final = 1700 << 20
"""vLLM's memory without weights and KV cache: 1.7 GiB, measured without GPUs."""
_FOREIGN_BYTES: Final = 256 << 20
"""The memory of a program that a user's command starts, without weights."""
_WEIGHTS_SHARE: Final = 1.1
"""Bytes in memory for each byte of weights on disk. Buffers for the computation need about a tenth more."""
_GPU_BYTES: Final = 1 << 30
"""Bytes on each GPU for CUDA's context, captured graphs and activations, besides weights and KV cache."""
_GIB: Final = 1 << 30
_SPACE: Final = "VLLM_CPU_KVCACHE_SPACE"
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_NOTHING: Final = ("", "auto", "None")
"""Values of a flag that mean the same as its absence."""
_QUANTIZED: Final = "quantization_config"
_IMAGE_KEYS: Final = ("vision", "visual", "image", "img", "mm_")
"""Parts of names in config.json of models that take images with vLLM."""
_QUANTIZED_SHARE: Final = 0.25
"""The size of weights that vLLM quantizes (to 4 bits) during loading, relative to half precision."""


def default_budget() -> int | None:
    """The memory of the machine or of this process's container. None if it is unknown."""
    state = read_memory()
    return state.total_bytes if state else None


class MemoryMeter:
    """Measures models and remembers the results. Each method may run on any thread.

    `measure` reads the memory of every process of a model. This takes 25 ms for each GiB, and 80 ms for a
    small model of vLLM (November 2026, two cores). `free` takes less than 1 ms without GPUs. The other
    methods read the sizes of a model's files once. They also read the headers of weights that are converted
    during loading.
    """

    def __init__(self, find_model: Callable[[str], str | None]) -> None:
        """`find_model` returns a model's folder or file on disk. Its argument is the model's name."""
        self._find_model = find_model
        self._lock = threading.Lock()
        self._entries: dict[str, ModelEntry] = {}
        self._sizes: dict[str, _Size] = {}
        self._now: dict[str, Need] = {}
        self._estimates = defaultdict[str, dict[int, Need]](dict)
        """Model's name -> sleep level -> the estimated need."""
        self._reserved: dict[str, Need] = {}
        self._gpus = tuple(read_gpus_here())
        if self._gpus:
            keep_driver_open()

    @property
    def has_gpus(self) -> bool:
        return bool(self._gpus)

    def free(self) -> Need | None:
        """The memory that is free now. Its GPU memory is the sum over all GPUs. None if it is unknown."""
        state = read_memory()
        if state is None:
            return None
        gpus = read_gpus_here() if self._gpus else ()
        return Need(state.available_bytes, sum(gpu.free_bytes for gpu in gpus))

    def measure(self, name: str, pids: Collection[int], level: int = 0) -> Need:
        """Measures the memory that these processes of a model and their descendants use.

        For a model that is awake, the result is at least the memory that its settings reserve. At sleep level
        1, it is at least the size of the weights. If the driver lists no process of the model, as in a
        container, the estimate of GPU memory is used.
        """
        tree = set(pids).union(*(descendants(pid) for pid in pids))
        gpus = read_gpus_here() if self._gpus else ()
        on_gpus = (process for gpu in gpus for process in gpu.processes)
        used = (process.used_bytes or 0 for process in on_gpus if process.pid in tree)
        memory = Need(sum(map(pss_bytes, tree)), sum(used))
        with self._lock:
            if not memory.gpu_bytes:
                memory = memory._replace(gpu_bytes=self._estimates[name].get(level, memory).gpu_bytes)
            self._now[name] = memory
            if not self._sizes.get(name, _NO_SIZE).on_disk:
                self._sizes.pop(name, None)  # the start may have downloaded it
            if level:
                kept_bytes = self._sizes.get(name, _NO_SIZE).loaded if level == 1 else 0
                return memory.at_least(Need(kept_bytes))
            return memory.at_least(self._reserved.get(name, memory))

    def measured_bytes(self, name: str) -> int | None:
        """The memory of the model's processes at the last measurement. None if there was no measurement."""
        with self._lock:
            memory = self._now.get(name)
        return None if memory is None else memory.ram_bytes + memory.gpu_bytes

    def forget(self, name: str) -> None:
        """Forgets the measurement of a model whose processes have ended."""
        with self._lock:
            self._now.pop(name, None)

    def size_bytes(self, name: str) -> int | None:
        """The size of the model's weights on disk. None if they are not on disk."""
        return self._size_of(name).on_disk or None

    def takes_images(self, name: str) -> bool | None:
        """Whether the model takes images. None if this is unknown."""
        return self._size_of(name).takes_images

    def forget_replaced(self, entry: ModelEntry) -> bool:
        """Forgets what was read from the model's files if they were replaced. Returns whether they were.

        Reads the stamps of all of the model's files.
        """
        with self._lock:
            size = self._sizes.get(entry.name)
        if size is None or size.stamps == _read_stamps(self._find_model(entry.name), entry):
            return False
        with self._lock:
            self._sizes.pop(entry.name, None)
        return True

    def need_of(self, entry: ModelEntry) -> Need:
        """The estimate for a model before its first measurement. Reads the disk if the entry has changed."""
        with self._lock:
            if self._entries.get(entry.name) != entry:
                self._entries[entry.name] = entry
                self._sizes.pop(entry.name, None)
        need = estimate(entry, self._size_of(entry.name).loaded, self._gpus)
        with self._lock:
            self._estimates[entry.name][0] = need
            self._reserved[entry.name] = reserved(entry, self._gpus)
        return need

    def asleep_needs_of(self, entry: ModelEntry) -> dict[int, Need]:
        """Sleep level -> the estimated need, for each level of the model. The best level comes first.

        At both levels, CUDA's context and the graphs stay on the GPUs.
        """
        awake = self.need_of(entry)
        weights = int(self._size_of(entry.name).loaded * _WEIGHTS_SHARE)
        if entry.foreign is not None:
            needs = {level: Need(awake.ram_bytes) for level in entry.sleep_levels if entry.foreign.sleep_calls}
        else:
            given = _read_flags(entry, has_gpu=True)
            kept = given.num_gpus * _GPU_BYTES if awake.gpu_bytes else 0
            program = Need(_program_bytes(entry), min(kept, awake.gpu_bytes))
            moved = Need(weights * given.num_replicas)
            needs = {level: program.plus(moved if level == 1 else NOTHING) for level in entry.sleep_levels}
        with self._lock:
            self._estimates[entry.name].update(needs)
        return needs

    def _size_of(self, name: str) -> "_Size":
        with self._lock:
            size, entry = self._sizes.get(name), self._entries.get(name)
        if size is None:
            place = self._find_model(name)
            stamps = _read_stamps(place, entry)
            size = _NO_SIZE if place is None else _read_size(Path(place), entry)
            size = size._replace(stamps=stamps)
            with self._lock:
                self._sizes[name] = size
        return size


class _Size(NamedTuple):
    """The size of a model's weights in bytes, on disk and in memory."""

    on_disk: int
    loaded: int
    takes_images: bool | None = None
    """None if this is unknown."""
    stamps: Mapping[str, FileStamp] = MappingProxyType({})
    """The stamps of the model's files when their sizes were read."""


_NO_SIZE: Final = _Size(0, 0)


def _read_size(place: Path, entry: ModelEntry | None) -> _Size:
    on_disk = weight_bytes(place)
    converted = converted_bytes(entry, place) if entry else None
    return _Size(on_disk, converted or on_disk, _takes_images(entry, place))


def _takes_images(entry: ModelEntry | None, place: Path) -> bool | None:
    keys = " ".join(read_json_object(place / "config.json").content)
    if entry is None or entry.foreign is not None or not keys:
        return None
    if entry.engine == "embedded":
        return accepts_images(place)
    return any(part in keys for part in _IMAGE_KEYS)


def _read_stamps(place: str | None, entry: ModelEntry | None) -> FolderStamps:
    """The stamps of the files in the model's folder, or of the GGUF files that a command names."""
    if place is not None and Path(place).is_dir():
        return read_folder(Path(place))
    if place is not None:
        return {place: read_stamp(place)}
    arguments = entry.foreign.arguments if entry is not None and entry.foreign is not None else ()
    return {str(file): read_stamp(file) for file in _named_gguf_files(arguments)}


def read_gpus_here() -> tuple[Gpu, ...]:
    """The machine's GPUs. Empty if the models cannot use any, for example because a variable hides them."""
    state = read_gpus() if expects_gpu() else None
    return state.gpus if state else ()


def weight_bytes(place: Path) -> int:
    """The size of the weight files that a model loads. `place` is the model's folder or its only file."""
    files: Iterable[Path] = [place]
    if place.is_dir():
        files = find_weight_files(place, with_tensors=False).present or place.glob("*.gguf")
    return sum(map(_size, files))


def converted_bytes(entry: ModelEntry, place: Path) -> int | None:
    """The size in memory of weights that are converted during loading. None for other weights.

    If no type is given, vLLM converts float32 weights to half precision.
    """
    config = read_json_object(place / "config.json").content if place.is_dir() else {}
    if entry.foreign is not None or not config:
        return None
    given = _read_flags(entry)
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = "half" if given.dtype == "auto" and entry.engine == "vllm" and own == "float32" else given.dtype
    if given.quantization and _QUANTIZED not in config:
        return int(loaded_bytes(read_checkpoint(place), "half") * _QUANTIZED_SHARE)
    return None if dtype == "auto" else loaded_bytes(read_checkpoint(place), dtype)


def estimate(entry: ModelEntry, size_bytes: int, gpus: Collection[Gpu] = ()) -> Need:
    """Estimates a model's memory before its first measurement. Its loaded weights have `size_bytes`.

    The estimate is the sum of the program, the weights, a tenth of the weights, and the KV cache. If the size
    of the KV cache is not given, both engines take a share of the GPU's memory, as `reserved` describes. Then
    the estimate is this share.
    """
    weights = int(size_bytes * _WEIGHTS_SHARE)
    if entry.foreign is not None:
        named = _named_gguf_files(entry.foreign.arguments)
        return Need(_FOREIGN_BYTES + (weights or int(_WEIGHTS_SHARE * sum(map(_size, named)))))
    has_gpu = bool(gpus) and _may_use_gpus(entry)
    given = _read_flags(entry, has_gpu=has_gpu)
    if has_gpu:
        gpu_sizes = [gpu.total_bytes for gpu in gpus]
        return Need(_program_bytes(entry), _gpu_need(given, weights, gpu_sizes, entry.engine))
    used = weights + _program_bytes(entry) + (given.kv_cache_bytes or 0)
    return Need(used).at_least(reserved(entry, gpus))


def reserved(entry: ModelEntry, gpus: Collection[Gpu] = ()) -> Need:
    """The memory that a model's settings reserve. A running model may not have taken all of it yet.

    A given size of the KV cache is reserved. Without this size, vLLM reserves a share of each GPU's memory.
    If there is no GPU, it reserves a share of the machine's memory. vLLM starts only if the share is free. It
    ignores a container's limit.
    """
    has_gpu = bool(gpus) and _may_use_gpus(entry)
    given, state = _read_flags(entry, has_gpu=has_gpu), read_memory()
    if entry.foreign is not None or (entry.engine != "vllm" and given.kv_cache_bytes is None):
        return NOTHING
    if has_gpu:
        gpu_sizes = [gpu.total_bytes for gpu in gpus]
        return Need(0, _gpu_need(given, 0, gpu_sizes, entry.engine))
    if given.kv_cache_bytes is not None:
        return Need(given.kv_cache_bytes)
    if state is None or state.is_cgroup:
        return NOTHING
    utilization = given.utilization or _default_utilization("vllm")
    return Need(int(utilization * state.total_bytes))


class _Given(NamedTuple):
    """The values of a model's flags and variables that determine its memory. None if a value is not given."""

    utilization: float | None
    kv_cache_bytes: int | None
    num_gpus: int
    num_replicas: int
    """The number of data-parallel engines on these GPUs. Each has all weights, but maybe not all experts."""
    dtype: str
    quantization: str
    """The method of quantization. Empty if no method is given."""


def _read_flags(entry: ModelEntry, *, has_gpu: bool = False) -> _Given:
    from startup.vllm_arguments.vllm_line import VllmLine
    from startup.vllm_arguments.vllm_record import VllmRecord  # noqa: PLC0415 - as below

    line = VllmLine.of(entry.arguments, VllmRecord())  # without the record, which would be read for each model

    def text(flag: str) -> str:
        value = line.value(flag)
        return "" if value is None or value in _NOTHING else value

    kv_cache = _size_of(text("--kv-cache-memory-bytes"))
    if entry.engine == "vllm" and not has_gpu:
        space = entry.env.get(_SPACE) or foreign.text_of(_SPACE)
        if space.isdigit():
            kv_cache = int(space) * _GIB or kv_cache
    num_replicas = _size_of(text("--data-parallel-size-local")) or _size_of(text("--data-parallel-size")) or 1
    num_shards = _size_of(text("--tensor-parallel-size")) or 1
    num_stages = _size_of(text("--pipeline-parallel-size")) or 1
    return _Given(
        utilization=_share_of(text("--gpu-memory-utilization")),
        kv_cache_bytes=kv_cache,
        num_gpus=num_replicas * num_shards * num_stages,
        num_replicas=num_replicas,
        dtype=text("--dtype") or "auto",
        quantization=text("--quantization"),
    )


def _gpu_need(given: _Given, weights: int, totals: list[int], engine: str) -> int:
    if given.kv_cache_bytes is not None:
        return weights + given.num_gpus * (given.kv_cache_bytes + _GPU_BYTES)
    utilization = given.utilization or _default_utilization(engine)
    return int(utilization * sum(totals[: given.num_gpus]))


def _default_utilization(engine: str) -> float:
    """The share of memory that an engine takes by default."""
    from startup.vllm_arguments.vllm_record import default_utilization  # noqa: PLC0415 - reads what is installed

    return default_utilization() if engine == "vllm" else EngineConfig.gpu_memory_utilization


def _program_bytes(entry: ModelEntry) -> int:
    return _VLLM_BYTES if entry.engine == "vllm" else PROGRAM_BYTES


def _may_use_gpus(entry: ModelEntry) -> bool:
    return entry.env.get(_VISIBLE, "0") not in ("", "-1")


def _named_gguf_files(arguments: Iterable[str]) -> Iterator[Path]:
    """The GGUF files that a user's command names. All parts of a divided file count."""
    for argument in arguments:
        if argument.lower().endswith(".gguf"):
            file = Path(argument)
            yield from map(file.with_name, shard_names(file.name))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _size_of(text: str) -> int | None:
    try:
        return parse_size(text) or None
    except ValueError:
        return None


def _share_of(text: str) -> float | None:
    try:
        return float(text) if 0 < float(text) <= 1 else None
    except ValueError:
        return None
