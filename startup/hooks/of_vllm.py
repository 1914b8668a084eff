"""The hooks in vLLM, and in uvicorn and setproctitle for it."""

from typing import Final

from startup.hooks.hook import Hook, Name, Reads, Text

_LAUNCHER: Final = (
    "vllm.entrypoints.launchers.launcher",
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.launcher",
)
"""Where vLLM binds its port and serves: since 0.29, and before."""

MAIN: Final = Name("vllm.entrypoints.cli.main", "main", ())
COMMAND_LINE: Final = Hook(
    "command line",
    does="runs `vllm serve` in the launcher's process",
    without="vLLM runs as a new program",
    needs=(MAIN,),
    is_essential=True,
)

API_MODULES: Final = ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve", "vllm.v1.engine.async_llm")
API_SERVER: Final = Hook(
    "API server's modules",
    does="imports them while the forkserver imports the engine's",
    without="nothing is imported in advance",
    needs=tuple(map(Name, API_MODULES)),
    is_essential=True,
)

ENGINE_MODULES: Final = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")
ENGINE: Final = Hook(
    "engine's modules",
    does="imports them in the forkserver",
    without="nothing is imported in advance",
    needs=tuple(map(Name, ENGINE_MODULES)),
    is_essential=True,
)

CPU_MODULES: Final = ("vllm.v1.worker.cpu_worker",)
GPU_MODULES: Final = ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner")
LATER_MODULES: Final = ("vllm.kernels",)
"""vLLM imports these once the engine is ready; the launcher, while the engine loads its model."""
SERVING_MODULES: Final = ("vllm.entrypoints.launchers.app", "vllm.entrypoints.launchers.api_server.app_state")
"""The launcher imports these, too, while the engine loads its model; new in 0.31 and 0.32."""
WORKER: Final = Hook(
    "workers' modules",
    does="imports them in the forkserver and `vllm.kernels` in the API server",
    without="each worker imports them itself in the first start; later starts know them from the profile",
    needs=tuple(map(Name, (*CPU_MODULES, *GPU_MODULES, *LATER_MODULES))),
)

PROCESS_START: Final = Hook(
    "process start",
    does="forks engines, workers and API servers from the forkserver where vLLM uses `spawn`",
    without="every process imports vLLM itself",
    needs=(
        Text(("vllm.utils.system_utils",), r"def get_mp_context\(.*?multiprocessing\.get_context\(", "get_mp_context"),
        Text(("vllm.envs",), r'"VLLM_WORKER_MULTIPROC_METHOD"', "VLLM_WORKER_MULTIPROC_METHOD"),
        Text(("vllm.v1.engine.utils",), r"get_mp_context\(\)", "a start of engines with get_mp_context"),
    ),
    is_essential=True,
)

PORT: Final = Hook(
    "port",
    does="gives vLLM the listening socket when it binds its address",
    without="probes cannot be answered before vLLM serves",
    needs=(Text(_LAUNCHER, r"^    sock\.bind\(", "sock.bind()"),),
    is_essential=True,
)

STARTUP: Final = Name("uvicorn.server", "Server.startup", ("sockets",))
SHUTDOWN: Final = Name("uvicorn.server", "Server.shutdown")
SERVING: Final = Hook(
    "serving",
    does="notices when vLLM's HTTP server accepts and stops",
    without="the port cannot be handed over, and readiness is not known",
    needs=(
        STARTUP,
        SHUTDOWN,
        Name("uvicorn.server", "Server.started"),
        Text(_LAUNCHER, r"\(uvicorn\.Server\)|uvicorn\.Server\(", "uvicorn.Server"),
    ),
    is_essential=True,
)

SERVING_PROBES: Final = Hook(
    "probes while serving",
    does="has the responder's process answer `/health` while vLLM serves",
    without="`/health` waits while vLLM's event loop is held",
    needs=(
        Name("uvicorn.server", "Server.main_loop", ()),
        Name("uvicorn.server", "Server.lifespan"),
        Name("uvicorn.server", "ServerState.default_headers"),
        *(
            Name("uvicorn.config", f"Config.{name}")
            for name in (
                "asgi_version", "is_ssl", "limit_concurrency", "loaded_app", "root_path", "server_header",
                "timeout_keep_alive",
            )
        ),
        Name("vllm.engine.protocol", "EngineClient.errored"),
    ),
)  # fmt: skip

ASYNC_LLM: Final = "vllm.v1.engine.async_llm"
CLIENT_PARAMETERS: Final = ("vllm_config", "executor_class", "client_addresses", "client_count", "client_index")
"""Parameters of `AsyncLLM` that it passes on to its client of the engine."""
RENDERER_FACTORY: Final = Name(ASYNC_LLM, "renderer_from_config", ("config",))
INPUT_PROCESSOR: Final = Name(ASYNC_LLM, "InputProcessor")
ENGINE_CLIENT: Final = Name(ASYNC_LLM, "EngineCoreClient")
EARLY_ENGINE: Final = Hook(
    "early engine",
    does="starts the engine before the API server loads its tokenizers",
    without="the engine starts after the tokenizers are loaded",
    needs=(
        Name(ASYNC_LLM, "AsyncLLM.__init__", (*CLIENT_PARAMETERS, "log_stats")),
        RENDERER_FACTORY,
        INPUT_PROCESSOR,
        ENGINE_CLIENT,
        Name("vllm.v1.engine.core_client", "EngineCoreClient.make_async_mp_client", (*CLIENT_PARAMETERS, "log_stats")),
        Text((ASYNC_LLM,), r"renderer_from_config\(self\.vllm_config\)", "the call of renderer_from_config"),
        Text(
            (ASYNC_LLM,), r"InputProcessor\(self\.vllm_config, renderer\)", "InputProcessor(self.vllm_config, renderer)"
        ),
    ),
)

WAIT_FOR_ENGINE: Final = Name("vllm.v1.engine.utils", "wait_for_engine_startup")
ENGINE_WAIT: Final = Hook(
    "wait for the engine",
    does="imports the rest of the API server while vLLM waits for its engine",
    without="it is imported before or after the wait",
    needs=(WAIT_FOR_ENGINE,),
)

_OUTPUT: Final = "vllm.v1.structured_output"
OUTPUT_TOKENIZER: Final = Name(_OUTPUT, "cached_tokenizer_from_config")
OUTPUT_MANAGER: Final = Name(_OUTPUT, "StructuredOutputManager")
LATE_TOKENIZER: Final = Hook(
    "late tokenizer of the engine",
    does="loads the tokenizer for structured output when a request needs it",
    without="the engine loads a tokenizer before it is ready",
    needs=(
        OUTPUT_TOKENIZER,
        OUTPUT_MANAGER,
        Text(
            (OUTPUT_MANAGER.module,),
            r"self\.tokenizer = cached_tokenizer_from_config\(",
            "its assignment to self.tokenizer",
        ),
    ),
    not_in={(0, 29): "vLLM 0.29 wraps this tokenizer at once"},
)

LATE_NAMES: Final = Hook(
    "late imports",
    does="delays imports whose names are used only in calls and annotations (`startup.imports.late_names`)",
    without="every process imports what few requests use",
    needs=(
        Text(("vllm.connections",), r"^import aiohttp\b", "import aiohttp"),
        Text(
            ("vllm.v1.structured_output",), r"^from vllm\.v1\.structured_output\.backend_xgrammar import", "an import"
        ),
    ),
)

NAMED_SPANS: Final = Hook(
    "spans by name",
    does="times further functions of vLLM (`startup.vllm.patches.named_spans`)",
    without="the report of the start has fewer phases",
    needs=(
        Name("vllm.engine.arg_utils", "EngineArgs.create_engine_config"),
        Name("vllm.v1.engine.input_processor", "InputProcessor.__init__"),
    ),
)

INSTRUMENT: Final = Name("vllm.tracing", "instrument", ("obj", "span_name"))
SPANS: Final = Hook(
    "spans",
    does="times the functions that vLLM marks with `@instrument`",
    without="the report of the start has no phases inside vLLM, and modules are recorded at readiness only",
    needs=(INSTRUMENT,),
)

RUN_IN_SUBPROCESS: Final = Name("vllm.model_executor.models.registry", "_run_in_subprocess", ("fn",))
LOAD_PLUGINS: Final = Name("vllm.plugins", "load_general_plugins", ())
MODEL_INSPECTION: Final = Hook(
    "model inspection",
    does="inspects a model's class in a fork instead of a new program",
    without="the first start of a model takes some seconds more",
    needs=(RUN_IN_SUBPROCESS, LOAD_PLUGINS, Name("cloudpickle")),
)

MODEL_REGISTRY: Final = Name("vllm.model_executor.models.registry", "ModelRegistry")
MODEL_MODULES: Final = Hook(
    "model's modules",
    does="imports the model's class in the forkserver",
    without="each worker of a first start imports it",
    needs=(
        MODEL_REGISTRY,
        Name(MODEL_REGISTRY.module, "_ModelRegistry.models"),
        Name(MODEL_REGISTRY.module, "_LazyRegisteredModel.module_name"),
    ),
)

UNUSED_COMMANDS: Final = Hook(
    "unused subcommands",
    does="leaves out the modules of vLLM's other subcommands",
    without="they are imported to list their names, and `vllm preload` imports torch's compiler",
    needs=(Text((MAIN.module,), r"\.cmd_init\(", "cmd_init()"),),
)

DECORATORS: Final = "vllm.compilation.decorators"
COMPILE_CACHE: Final = Hook(
    "compile cache",
    does="reports whether the compiled model was loaded, and bypasses a cache that failed to load",
    without="the log does not say it, and a cache that fails to load fails in every start",
    needs=(
        Text((DECORATORS,), "Directly load AOT compilation", "the message of a hit"),
        Text((DECORATORS,), "saved AOT compiled function", "the message of a saved model"),
        Text((DECORATORS,), "Compiling model again due to a load failure", "the message of a failure"),
        Text(("vllm.envs",), '"VLLM_USE_AOT_COMPILE"', "VLLM_USE_AOT_COMPILE"),
        Name("torch._dynamo.utils", "counters"),
    ),
)

LOAD_COMPILED: Final = Name("torch.compiler", "load_compiled_function")
AOT_LOADING: Final = Hook(
    "loading of compiled models",
    does="adds `finalize_loading` to Inductor's functions, which vLLM calls on all",
    without="vLLM for CPU compiles the model in every start",
    needs=(
        LOAD_COMPILED,
        Text((DECORATORS,), r"torch\.compiler\.load_compiled_function\(", "torch.compiler.load_compiled_function()"),
        Text((DECORATORS,), r"\._artifacts\.compiled_fn\.finalize_loading\(", "finalize_loading()"),
    ),
)

PATCH_COMPILER: Final = Name("vllm.env_override", "_patch_inductor_fallback_allow_list", ())
LATE_COMPILER: Final = Hook(
    "late compiler",
    does="delays vLLM's patch of torch's compiler until the compiler is imported, in eager starts on GPUs",
    without="torch's compiler is imported in every start",
    needs=(
        PATCH_COMPILER,
        Text(
            (PATCH_COMPILER.module,),
            rf"^def {PATCH_COMPILER.path}\((?:(?!^def ).)*?except ImportError",
            "`except ImportError` in the patch",
        ),
    ),
)

DECORATE_LOGS: Final = Name("vllm.utils.system_utils", "decorate_logs", ("process_name", "skip_if_decorated"))
STREAM_PREFIXES: Final = Hook(
    "prefixes of streams",
    does="leaves out the process's name that vLLM writes before each line, in JSON logs",
    without="JSON logs are invalid",
    needs=(DECORATE_LOGS,),
    until=(0, 30),
)
JSON_LOGS: Final = Hook(
    "JSON logs",
    does="configures vLLM's log (`--log-format json`)",
    without="`--log-format json` applies only to the launcher's own lines",
    needs=(Text(("vllm.logger",), r"envs\.VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_CONFIG_PATH"),),
)
PROCESS_NAMES: Final = Hook(
    "names of processes in logs",
    does="takes the process's name from log records, in JSON logs",
    without="JSON logs have multiprocessing's names",
    needs=(Text(("vllm.logger",), r"record\.vllm_process_name\b", "vllm_process_name"),),
    since=(0, 31),
)

CACHED_TOKENIZER: Final = Name("vllm.tokenizers.registry", "cached_tokenizer_from_config", ("model_config",))
CHAT_TEMPLATE: Final = Name(
    "vllm.renderers.hf",
    "_try_get_processor_chat_template",
    ("tokenizer", "revision", "code_revision", "trust_remote_code"),
)
TOKENIZER_CACHES: Final = (
    Name("vllm.tokenizers.registry", "cached_get_tokenizer"),
    Name("vllm.tokenizers.registry", "cached_resolve_tokenizer_args"),
    Name("vllm.transformers_utils.processor", "cached_get_processor"),
    Name("vllm.renderers.hf", "_PROCESSOR_CHAT_TEMPLATES"),
)
"""Functions of `functools`, and a dictionary."""
CONFIG_OF_TOKENIZER: Final = Reads(
    CACHED_TOKENIZER,
    "model_config",
    (
        "skip_tokenizer_init", "hf_config", "tokenizer", "model", "runner_type", "tokenizer_mode", "tokenizer_revision",
        "code_revision", "trust_remote_code",
    ),
)  # fmt: skip
PROCESSOR_LOADER: Final = Name("transformers.models.auto.processing_auto", "AutoTokenizer")
PROCESSOR_LOOKUP: Final = Hook(
    "search for a processor",
    does="gives it the tokenizer that is loaded",
    without="the tokenizer of a model without a processor is loaded once more",
    needs=(CHAT_TEMPLATE, PROCESSOR_LOADER),
)

MODEL_CACHES: Final = Hook(
    "kept tokenizers",
    does="loads a model's tokenizer and template once in a standby, into vLLM's own caches",
    without="a warm start loads the tokenizer again",
    needs=(CACHED_TOKENIZER, CONFIG_OF_TOKENIZER, CHAT_TEMPLATE, *TOKENIZER_CACHES),
)

MAKE_POOL: Final = Name("vllm.tokenizers.hf", "maybe_make_thread_pool", ("tokenizer", "copies"))
RENDERER: Final = "vllm.renderers.hf"
TOKENIZER_POOL: Final = Hook(
    "prepared tokenizer pools",
    does="copies a tokenizer in a standby, where vLLM's renderer would copy it",
    without="a warm start copies the tokenizer twice",
    needs=(
        MAKE_POOL,
        Text((RENDERER,), r"tokenizer = copy\.copy\(tokenizer\)", "copy.copy(tokenizer)"),
        Text((RENDERER,), r"make_thread_pool\([^)]*renderer_num_workers \+ 1", "a pool of renderer_num_workers + 1"),
    ),
)

SET_TITLE: Final = Name("setproctitle", "setproctitle")
PROCESS_TITLES: Final = Hook(
    "process titles",
    does="shows the titles of vLLM's processes in forks of a standby",
    without="`ps` shows the command line of the standby",
    needs=(SET_TITLE,),
)

_CPU: Final = "vllm.platforms.cpu"
CHILD_VARIABLES: Final = Hook(
    "variables of children",
    does="starts the forkserver with variables that vLLM sets for its workers (OpenMP, allocator, Inductor)",
    without="workers on CPU are slower, or are started as new programs",
    needs=(
        Text((_CPU,), r'os\.environ\["LD_PRELOAD"\]', "LD_PRELOAD"),
        Text((_CPU,), r'os\.environ\["TORCHINDUCTOR_COMPILE_THREADS"\]', "TORCHINDUCTOR_COMPILE_THREADS"),
    ),
)
RECORDED_PROCESSES: Final = Hook(
    "processes of the preload profile",
    does="tells API servers from engines and workers by their names",
    without="modules are recorded for the wrong process",
    needs=(Text(("vllm.v1.utils",), r'f"ApiServer_', "ApiServer_"),),
)

OF_VLLM: Final = (
    COMMAND_LINE,
    API_SERVER,
    ENGINE,
    WORKER,
    PROCESS_START,
    PORT,
    SERVING,
    SERVING_PROBES,
    EARLY_ENGINE,
    ENGINE_WAIT,
    LATE_TOKENIZER,
    LATE_NAMES,
    SPANS,
    NAMED_SPANS,
    MODEL_INSPECTION,
    MODEL_MODULES,
    UNUSED_COMMANDS,
    COMPILE_CACHE,
    AOT_LOADING,
    LATE_COMPILER,
    STREAM_PREFIXES,
    JSON_LOGS,
    PROCESS_NAMES,
    PROCESSOR_LOOKUP,
    MODEL_CACHES,
    TOKENIZER_POOL,
    PROCESS_TITLES,
    CHILD_VARIABLES,
    RECORDED_PROCESSES,
)
