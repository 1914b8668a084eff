"""Whether this container's environment customizes the server as SageMaker allows it.

The variables are read by AWS's package `model-hosting-container-standards`.
"""

import os
from pathlib import Path
from typing import Final

VARIABLES: Final = (
    "SAGEMAKER_MODEL_PATH",
    "SAGEMAKER_ENABLE_STATEFUL_SESSIONS",
    "CUSTOM_SCRIPT_FILENAME",
    "CUSTOM_FASTAPI_PING_HANDLER",
    "CUSTOM_FASTAPI_INVOCATION_HANDLER",
    "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE",
    "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS",
    "CUSTOM_PRE_PROCESS",
    "CUSTOM_POST_PROCESS",
)
DEFAULT_SCRIPT: Final = Path("/opt/ml/model/model.py")


def is_customized() -> bool:
    """Whether a variable is set, or the customer's script is at its default place."""
    return any(os.environ.get(name) for name in VARIABLES) or DEFAULT_SCRIPT.exists()
