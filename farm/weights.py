"""The files that models consist of, as far as the client, the API and the workers have to agree on them."""

from __future__ import annotations

from typing import Final

SAFETENSORS: Final = ".safetensors"
#: The formats of weights that can contain code, and code itself; none of them is ever sent or loaded.
UNSAFE: Final = frozenset(
    {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pb", ".py", ".so"}
)
PART_BYTES: Final = 128 * 2**20  #: into which files are cut: what is sent, verified and repeated as one
