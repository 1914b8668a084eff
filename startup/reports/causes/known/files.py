"""Causes about the Hugging Face hub, files, folders and ports."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause

FILES: Final = (
    KnownCause(
        "gated-repo",  # vllm#9255
        "the model's licence is not accepted, or the token may not read the model",
        "You are trying to access a gated repo | Cannot access gated repo | GatedRepoError | "
        "is restricted. You must have access to it and be authenticated",
        "Accept the licence on the model's page. Set HF_TOKEN to that account's token with read access.",
    ),
    KnownCause(
        "hub-unauthorized",  # vllm#11173
        "the hub does not let this user read the model",
        "401 Client Error | 403 Client Error",
        "Set HF_TOKEN to a token of an account that has accepted the licence. Check the model's name.",
        is_general=True,
    ),
    KnownCause(
        "hub-offline",  # vllm#3719
        "the model is not on disk, and HF_HUB_OFFLINE forbids the download",
        "offline mode is enabled | OfflineModeIsEnabled | outgoing traffic has been disabled",
        "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or download the model into HF_HOME first.",
    ),
    KnownCause(
        "hub-unreachable",  # vllm#1986
        "the hub cannot be reached",
        "We couldn't connect to | cannot find the requested files in the local cache | host='huggingface.co' | "
        "Failed to resolve 'huggingface.co' | SSLCertVerificationError",
        "Check the network, HTTPS_PROXY and HF_ENDPOINT. If the model is on disk, name its folder or set "
        "HF_HUB_OFFLINE=1.",
    ),
    KnownCause(
        "host-unreachable",  # vllm#15518
        "a host cannot be reached, or its name cannot be resolved",
        "Max retries exceeded with url | Failed to resolve | Temporary failure in name resolution | "
        "Name or service not known | ConnectTimeout",
        "For the hub, check the network, HTTPS_PROXY and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 with the model on disk. "
        "Otherwise check --host, --master-addr and the traceback's address.",
    ),
    KnownCause(
        "hub-error",  # vllm#24541
        "the hub answers with an error",
        "500 Server Error | 502 Server Error | 503 Server Error | 504 Server Error | 429 Client Error | "
        "Too Many Requests | CAS service error : Reqwest",
        "Try again later, or set HF_HUB_OFFLINE=1 with the model on disk. HF_TOKEN raises the limit of requests. If "
        "large files fail, set HF_HUB_DISABLE_XET=1.",
    ),
    KnownCause(
        "model-not-found",  # vllm#22043
        "there is no such model",
        "Invalid repository ID or local directory specified | Can't load the configuration of | "
        "Repo id must be in the form | Incorrect path_or_model_id | "
        "is not a local folder and is not a valid model identifier | RepositoryNotFoundError | "
        "Repository Not Found for url | does not appear to have a file named config.json | "
        "No config file found in the model directory | No supported config format found in",
        "Give OWNER/MODEL as on the hub, or an absolute path in the container to a folder with config.json, and mount "
        "it. For a private model, set HF_TOKEN.",
    ),
    KnownCause(
        "disk-full",  # diffusers#4957
        "a disk is full",
        "No space left on device | Disk quota exceeded",
        "Check `df -h` for HF_HOME, VLLM_CACHE_ROOT, /tmp and /dev/shm. In Kubernetes, raise the volume's size or "
        "ephemeral-storage.",
    ),
    KnownCause(
        "port-not-permitted",  # own
        "this user may not listen on a port below 1024",
        "PermissionError: [Errno 13] Permission denied$ | bind on address…ermission denied",
        "Set --port to 1024 or more, and map the lower port to it in the container's settings.",
    ),
    KnownCause(
        "folder-not-writable",  # tt-inference-server#37
        "a file or folder cannot be read or written",
        "[Errno 13] Permission denied: | Check cache directory permissions | Read-only file system",
        "Check the path's owner and mode. For caches, set HOME, HF_HOME, VLLM_CACHE_ROOT, TRITON_CACHE_DIR or "
        "XDG_CONFIG_HOME to a folder that the container's user may write (emptyDir).",
    ),
    KnownCause(
        "user-without-name",  # vllm#19504
        "this user has no entry in /etc/passwd, as in containers with a user of their own",
        "getpwuid(): uid not found",
        "Set USER and LOGNAME to any name, HOME to a folder that the user may write, and TORCHINDUCTOR_CACHE_DIR to a "
        "folder in it. Or add the user to the image's /etc/passwd.",
    ),
    KnownCause(
        "too-many-open-files",  # own
        "the limit of open files is too low",
        "OSError: [Errno 24] Too many open files",
        "Set `ulimit -n 65535`, LimitNOFILE=65535 in a systemd unit, or `docker run --ulimit nofile=65535`.",
    ),
    KnownCause(
        "too-many-processes",  # vllm#46670
        "the limit of processes and threads is too low",
        "can't start new thread | [Errno 11] Resource temporarily | Thread creation failed | "
        "RuntimeError: Resource temporarily unavailable | what():  Resource temporarily unavailable | "
        "ThreadPoolBuildError | pthread_create failed",
        "Raise `ulimit -u` or the container's pids limit (`docker run --pids-limit`), or set OMP_NUM_THREADS=1.",
    ),
    KnownCause(
        "file-missing",  # vllm#4520
        "a file or a program is missing",
        "^FileNotFoundError: [Errno 2] No such file or directory: '",
        "If the name has no folder, install the program, or activate its environment. If the file is in the hub's "
        "cache, `vllm-cli prefetch MODEL` downloads what is missing. Mount other files into the container.",
        is_general=True,
    ),
    KnownCause(
        "port-in-use",  # vllm#11702
        "another process uses the port",
        "error while attempting to bind on address | [Errno 98] Address already in use | "
        "The server socket has failed to listen on any local network address | ZMQError: Address already in use | "
        "EADDRINUSE | couldn't bind HTTP server socket",
        "Find the process with `ss -ltnp`, and stop it (`vllm-cli stop PORT`). Or choose another --port, --master-port "
        "or VLLM_PORT.",
        where="end",
    ),
    KnownCause(
        "address-not-local",  # own
        "the address does not belong to this machine",
        "Cannot assign requested address",
        "Set --host 0.0.0.0. For several nodes, set VLLM_HOST_IP to this node's address.",
    ),
)
