"""Number formats of `--mixed_precision`."""

from typing import Any

import torch

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> Any:
    """Return the autocast context of a key of `DTYPES`; it does nothing for `"no"`."""
    dtype = DTYPES[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
