"""What an error of the device means: no memory left, or a device that no longer works in this process.

torch raises errors of the device as several types, and some of them as a plain `RuntimeError`, so the text decides
where the type does not. After any error of a CUDA context but a failed allocation, every later call in the process
fails as well.
"""

from __future__ import annotations

import re
from typing import Final

import torch

#: An allocation failed: the caching allocators, CUDA itself, cuBLAS and cuDNN, which allocate workspaces of their own,
#: MPS, ROCm, XPU and the processor's allocator.
_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory|std::bad_alloc"
    r"|(CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUFFT|HIPBLAS|ROCBLAS|MIOPEN)_(STATUS_)?\w*ALLOC_FAILED"
    r"|UR_RESULT_ERROR_OUT_OF_(DEVICE|HOST)_MEMORY|hipErrorOutOfMemory|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
#: The device or its libraries failed.
_DEVICE_FAILURE: Final = re.compile(
    r"(CUDA|HIP|XPU|MPS|cuDNN|MIOpen|NCCL|NVML) (driver )?(error|failure)"
    r"|(CUBLAS|CUDNN|CUSPARSE|CUSOLVER|HIPBLAS|ROCBLAS|MIOPEN)_STATUS_(\w*_)?"
    r"(NOT_INITIALIZED|EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|ARCH_MISMATCH)"
    r"|device-side assert|illegal (memory access|instruction)|misaligned address|unspecified launch failure"
    r"|uncorrectable (ECC|NVLink) error|\bXid\b|command buffer exited with error status|UR_RESULT_ERROR_DEVICE_LOST",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or this machine has no memory left. Nothing else is broken then."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )


def is_device_failure(error: BaseException) -> bool:
    """Whether an error, or what caused it, means that the device no longer works in this process.

    A job's own mistakes (shapes, types, an input that the pipeline refuses) and a lack of memory are none.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if not is_out_of_memory(cause) and (
            isinstance(cause, torch.AcceleratorError)
            or (isinstance(cause, RuntimeError) and _DEVICE_FAILURE.search(str(cause)) is not None)
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
