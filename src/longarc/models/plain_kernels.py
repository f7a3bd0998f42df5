"""Whether the caller needs second derivatives or forward mode, which fused kernels do not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def plain_kernels_wanted() -> bool:
    """Whether ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` is in force.

    All of longarc asks so for attention that can be differentiated twice or in forward mode; the
    fused LSTM of CPUs (oneDNN), cuDNN's layers and the output-gated GRU's loop lack the same.

    >>> from torch.nn.attention import SDPBackend, sdpa_kernel
    >>> with sdpa_kernel(SDPBackend.MATH):
    ...     plain_kernels_wanted()
    True
    """
    fused = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    return torch.backends.cuda.math_sdp_enabled() and not any(fused)


@contextmanager
def fitting_kernels(*, training: bool) -> Iterator[None]:
    """Inside, torch's recurrent layers run on kernels that can do what the caller wants.

    ``training``: whether the layer is in training mode; cuDNN goes back through no other.
    """
    plain = plain_kernels_wanted()
    if not plain and (training or not torch.is_grad_enabled()):
        yield
        return
    mkldnn: Any = torch.backends.mkldnn
    # Not mkldnn.flags, which also sets what only another vendor's GPUs have, and warns of it.
    before = mkldnn.set_flags(_fp32_precision=None)[0]
    mkldnn.set_flags(_enabled=before and not plain, _fp32_precision=None)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        mkldnn.set_flags(_enabled=before, _fp32_precision=None)
