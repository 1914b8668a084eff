"""The part that listens on the port of vLLM."""

import os

from envs.registry import env
from startup.session.parts import Part
from startup.session.session import ListenAddress
from startup.vllm.launch.plain_start import address_of
from startup.vllm.launch.vllm_start import VllmStart
from startup.vllm.serving.serving_events import reuse_listener


class Listening(Part[VllmStart]):
    """Listens on the port that vLLM will bind, and forks the responder. vLLM then gets this socket."""

    needs = gives = frozenset({"line"})

    def begin(self) -> None:
        os.environ.pop(env.NOTIFY_SOCKET.name, None)  # a vLLM that sends READY=1 would send it a second time
        start, session, line = self.start, self.start.session, self.start.line
        if line.listens:
            has_tls, when_ready = line.has("--ssl-certfile"), start.options.listen_when_ready
            address = ListenAddress(line.host, line.port or 0, line.uds, is_tls=has_tls, when_ready=when_ready)
            listening = session.listen(address)
            if line.uds is None and line.port == 0:
                start.line = line.with_last("--port", str(session.port))
            session.stack.enter_context(reuse_listener(listening))
        else:
            session.keep_run_record(address_of(line))
        session.limit_time(None if start.is_headless else start.options.startup_timeout_s)
