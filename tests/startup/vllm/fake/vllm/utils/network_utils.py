"""Addresses of sockets and rendezvous files between processes."""

import os
import tempfile
from uuid import uuid4


def get_open_zmq_ipc_path() -> str:
    return f"ipc://{os.environ.get('VLLM_RPC_BASE_PATH', tempfile.gettempdir())}/{uuid4()}"


def get_file_store_init_method() -> str:
    return f"file://{tempfile.gettempdir()}/vllm_dist_{uuid4().hex}"


def find_process_using_port(port: int) -> str:
    """Always finds a process. Real vLLM raises an error if the process ends during the search."""
    return f"a process that has port {port}"
