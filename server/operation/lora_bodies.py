"""Bodies of /v1/load_lora_adapter and /v1/unload_lora_adapter."""

from server.http_body.fields import RequestBody


class LoadLoraAdapterRequest(RequestBody, kw_only=True):
    """Names and places an adapter."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    """Whether the adapter replaces a loaded one of this name."""
    is_3d_lora_weight: bool = False
    """Accepted as in vLLM; layers of experts cannot be adapted here."""


class UnloadLoraAdapterRequest(RequestBody, kw_only=True):
    """Names a loaded adapter."""

    lora_name: str
    lora_int_id: int | None = None
    """Accepted as in vLLM, which ignores it too."""
