"""Rows of `prompt_embeds` in the file formats and the encoding that clients send."""

import io
from typing import Any

import pybase64
import safetensors.torch
import torch


def saved(value: object, **options: Any) -> bytes:
    """The file that `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def as_safetensors(**tensors: torch.Tensor) -> bytes:
    """A safetensors file with these tensors; clients name theirs `prompt_embeds`."""
    return safetensors.torch.save(tensors)


def torch_payload(rows: object) -> str:
    """The rows as `torch.save` writes them, in base64."""
    return pybase64.b64encode_as_string(saved(rows))


def safetensors_payload(rows: torch.Tensor) -> str:
    """The rows as a safetensors file, in base64."""
    return pybase64.b64encode_as_string(as_safetensors(prompt_embeds=rows))
