"""`vllm-cli serve s3://…` downloads the model and serves it by its address."""

from tests.e2e.server_process import ServerProcess
from tests.s3_server import SECRET, s3_server


def test_a_model_in_an_object_store_is_served_by_its_address(tiny_llama, tmp_path):
    address = "s3://models/team/llama"
    with s3_server() as s3:
        s3.put_folder(tiny_llama, "team/llama")
        settings = {**s3.environment, "VLLM_CACHE_ROOT": str(tmp_path)}
        with ServerProcess([address], environment=settings) as server:
            with server.openai() as client:
                assert [model.id for model in client.models.list()] == [address]
                answer = client.completions.create(model=address, prompt="a", max_tokens=2)
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 2
            assert SECRET not in server.log
