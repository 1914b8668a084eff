"""Values of `prompt_embeds` in the file format and the encoding that clients send."""

import io
from typing import Any

import pybase64
import torch


def saved(value: object, **options: Any) -> bytes:
    """The bytes that `torch.save` writes for this value."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def torch_payload(rows: object) -> str:
    """The rows as `torch.save` writes them, in base64."""
    return pybase64.b64encode_as_string(saved(rows))
