"""Which errors mean a lack of memory, which mean a failed device, and which are a job's own."""

from __future__ import annotations

import pytest
import torch

from farm.errors import ModelUnavailable
from workers.device_errors import is_device_failure, is_out_of_memory

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError(),
]
DEVICE_FAILURES = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("whatever the device says"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA driver error: unknown error"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("Unable to use it: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("HIP error: the operation cannot be performed in the present state"),
]
JOBS_OWN = [
    TypeError("__call__() got an unexpected keyword argument 'strength'"),
    ValueError("CUDA error is a text in a prompt"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (77x32 and 64x16)"),
    RuntimeError("Input type (BFloat16) and bias type (float) should be the same"),
    ModelUnavailable("model x has no .safetensors files"),
]


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:50]}"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=named)
def test_a_lack_of_memory_is_no_failure_of_the_device(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_failure(error)


@pytest.mark.parametrize("error", DEVICE_FAILURES, ids=named)
def test_a_device_failure_is_recognized_also_as_the_cause_of_another_error(error: Exception) -> None:
    assert is_device_failure(error)
    assert not is_out_of_memory(error)
    wrapped = ModelUnavailable("model x cannot be loaded")
    wrapped.__cause__ = error
    assert is_device_failure(wrapped)


@pytest.mark.parametrize("error", JOBS_OWN, ids=named)
def test_a_mistake_of_a_job_is_neither(error: Exception) -> None:
    assert not is_device_failure(error)
    assert not is_out_of_memory(error)
