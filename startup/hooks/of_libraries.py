"""The hooks in torch, transformers, multiprocessing and other libraries."""

from typing import Final

from startup.hooks.hook import Hook, Name, Text

_FORKSERVER: Final = "multiprocessing.forkserver"
FORKSERVER: Final = Hook(
    "multiprocessing's forkserver",
    does="is the context of `spawn`; children outlive it and end with their parent",
    without="every process imports vLLM itself",
    needs=(
        Name("multiprocessing.context", "_concrete_contexts"),
        Name("multiprocessing.context", "ForkServerContext"),
        Name("multiprocessing.context", "get_spawning_popen"),
        Name(_FORKSERVER, "_forkserver"),
        Name(_FORKSERVER, "ForkServer.ensure_running", ()),
        Name(_FORKSERVER, "ForkServer._forkserver_pid"),
        Name(_FORKSERVER, "ForkServer._forkserver_alive_fd"),
        Name(_FORKSERVER, "ForkServer._forkserver_address"),
        Name(_FORKSERVER, "read_signed", ("fd",)),
        Name("multiprocessing.popen_forkserver", "Popen._launch", ("process_obj",)),
        Name("multiprocessing.popen_forkserver", "Popen.poll", ("flag",)),
        Name("multiprocessing.popen_spawn_posix", "Popen"),
        Name("multiprocessing.util", "Finalize"),
        Name("multiprocessing.util", "close_fds"),
    ),
    is_essential=True,
)

START_PROGRAM: Final = Name("multiprocessing.util", "spawnv_passfds", ("path", "args", "passfds"))
FORKSERVER_CODE: Final = "from multiprocessing.forkserver import main"
"""What multiprocessing executes in a new interpreter."""
DORMANT_FORKSERVER: Final = Hook(
    "dormant forkserver",
    does="makes a fork of a standby multiprocessing's forkserver",
    without="the forkserver of a warm start imports vLLM again",
    needs=(START_PROGRAM, Text((_FORKSERVER,), FORKSERVER_CODE, "the code of its program")),
)

GET_MODULE: Final = Name("inspect", "getmodule", ("object", "_filename"))
FRAME_MODULES: Final = Hook(
    "modules of frames",
    does="finds the module of a frame by its name, while modules are imported",
    without="torch's registrations resolve the paths of all modules",
    needs=(GET_MODULE,),
)

COMPILE: Final = Name("torch", "compile", ("model",))
LAZY_COMPILE: Final = Hook(
    "lazy torch.compile",
    does="compiles a decorated function at its first call",
    without="a decorator imports torch's compiler",
    needs=(COMPILE,),
)

DEFERRED_MODULES: Final = (
    "functorch.compile",
    "sympy",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils._sympy",
)
GET_SOURCE: Final = Name("torch._library.utils", "get_source", ("stacklevel",))
CHEAP_CALLS: Final = Hook(
    "cheap calls",
    does="notes the source of torch's operators, and configures logs, in less time",
    without="both take a tenth of the imports",
    needs=(
        GET_SOURCE,
        Name("logging.config", "dictConfig", ("config",)),
        Name("logging", "Manager._clear_cache", ()),
    ),
)

INNER_KERNELS: Final = Name("torch._library.triton", "get_inner_triton_kernels", ("fn",))
DEFERRED_COMPILER: Final = Hook(
    "deferred compiler",
    does="imports torch's compiler only when it is used",
    without="an eager start imports torch's compiler in the API server and on CPU",
    needs=(INNER_KERNELS, *map(Name, DEFERRED_MODULES)),
)

COMPILER_KEYS: Final = (
    Name("torch._inductor.codecache", "torch_key", ()),
    Name("torch._inductor.codecache", "triton_key", ()),
    Name("torch._inductor.cpu_vec_isa", "valid_vec_isa_list", ()),
)
KEPT_COMPILER_KEYS: Final = Hook(
    "kept keys of compile caches",
    does="hashes the compiler's sources once in a standby",
    without="a warm start that compiles hashes them again",
    needs=COMPILER_KEYS,
)

SCAN: Final = Name("transformers.utils.import_utils", "define_import_structure", ("module_path", "prefix"))
DISTRIBUTIONS: Final = Name("importlib.metadata", "packages_distributions", ())
CACHED_SCANS: Final = Hook(
    "cached scans",
    does="keeps on disk which names transformers' models export",
    without="every start reads the sources of all models",
    needs=(SCAN, DISTRIBUTIONS),
)

SHAPES_MODULE: Final = "torch.fx.experimental.symbolic_shapes"
SHAPE_FUNCTIONS: Final = (
    "expect_true",
    "guard_or_false",
    "guard_or_true",
    "guarding_hint_or_throw",
    "has_guarding_hint",
    "is_nested_int",
    "statically_known_true",
    "sym_and",
    "sym_eq",
    "sym_or",
)
LEFT_OUT_OF_TORCH: Final = ("torch._meta_registrations",)
"""Python rules for tensors without data; creating a model on the meta device needs only the rules in C++."""
LEFT_OUT: Final = (
    "sympy",
    "torch._dynamo",
    "torch.distributed.tensor",
    SHAPES_MODULE,
    "transformers.modeling_gguf_pytorch_utils",
)
STAND_INS: Final = Hook(
    "stand-ins of the embedded engine",
    does="imports torch and transformers without modules that serving does not use",
    without="the embedded engine imports them",
    needs=(
        *map(Name, (*LEFT_OUT_OF_TORCH, *LEFT_OUT)),
        *(Name(SHAPES_MODULE, function) for function in SHAPE_FUNCTIONS),
    ),
)

FORKED_LIBRARIES: Final = Hook(
    "libraries in forks",
    does="renews what libraries read on import: random state, settings of Inductor, the hub and metrics",
    without="a fork has the settings of its template",
    needs=(
        Name("torch._inductor.config", "compile_threads"),
        Name("transformers.utils.hub", "SESSION_ID"),
        Name("huggingface_hub.constants", "HF_HUB_OFFLINE"),
        Name("prometheus_client.values", "get_value_class", ()),
        Name("prometheus_client.values", "ValueClass"),
    ),
)

OF_LIBRARIES: Final = (
    FORKSERVER,
    DORMANT_FORKSERVER,
    FRAME_MODULES,
    LAZY_COMPILE,
    CHEAP_CALLS,
    DEFERRED_COMPILER,
    KEPT_COMPILER_KEYS,
    CACHED_SCANS,
    STAND_INS,
    FORKED_LIBRARIES,
)
