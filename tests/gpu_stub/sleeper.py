"""A server of vLLM's CUDA build that runs as a router's model, so that it can be put to sleep."""

from pathlib import Path
from typing import Any, Final

from envs.registry import env
from tests.gpu_stub.gpu_server import GpuServer
from tests.support.control_socket import tell
from tests.support.http_client import Answer, RawClient

_ANSWER_S: Final = 600.0


class Sleeper(GpuServer):
    """A server on a Unix socket, with vLLM's development endpoints, which show the engine's state."""

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        socket_folder: Path,
        num_gpus: int = 1,
        **variables: str,
    ) -> None:
        self.path = str(socket_folder / "1.sock")
        environment = {
            env.VCLI_ROUTER.name: self.path,
            "VLLM_SERVER_DEV_MODE": "1",
            "STUB_GPUS": str(num_gpus),
            **variables,
        }
        arguments = ("--enable-sleep-mode", "--uds", self.path, *arguments)
        super().__init__("ours", *arguments, folder=folder, environment=environment)

    def ask(self, path: str, body: object = None, **_: Any) -> Answer:
        try:
            with RawClient(self.path, timeout_s=_ANSWER_S) as client:
                return (client.get(path) if body is None else client.post(path, body)).read()
        except OSError:
            return Answer(0, b"", {})

    def sleep(self, level: int) -> float:
        """Puts the server to sleep. Returns how long that took, in seconds."""
        return self._tell(do="sleep", level=level)

    def wake(self) -> float:
        """Wakes the server. Returns how long that took, in seconds."""
        return self._tell(do="wake")

    def _tell(self, **request: Any) -> float:
        answer = tell(self.path, **request)
        assert answer is not None, self.log[-8000:]
        assert answer["ok"], (answer, self.log[-8000:])
        return float(answer["took_s"])

    def weights(self) -> dict[str, str]:
        """Checksums of all parameters of each rank of the first engine."""
        answer = self.ask("/collective_rpc", {"method": "compute_weight_checksums"})
        assert answer.status == 200, answer
        return {name: digest for digests in answer.json["results"] for name, digest in digests.items()}
