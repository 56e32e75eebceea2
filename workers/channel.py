"""Messages between a worker's two processes: pickled objects over a Unix socket, large buffers in shared memory.

Both ends run the same code and trust each other. A message is a header, the lengths of its buffers, and the pickle.
Buffers of at least `LARGE` bytes (frames, samples, images) are not copied through the socket: they lie in an anonymous
file in memory whose descriptor comes with the header. Unlike ``/dev/shm``, such a file has no size limit of its own in
a container, and no name that a killed process could leave behind.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any, Final

from PIL import Image

LARGE: Final = 64 * 2**10  #: bytes
_HEADER: Final = struct.Struct("!QI")  #: bytes of the pickle, number of buffers
_LENGTH: Final = struct.Struct("!Q")
#: Modes whose pixels are whole bytes; images of other modes are pickled as Pillow does it.
_PLAIN_MODES: Final = frozenset({"L", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "LAB"})


class Channel:
    """One end of the connection. `send` may be called from any thread, `receive` from one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message. Raises OSError when the other process is gone."""
        buffers: list[memoryview] = []

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < LARGE or not hasattr(os, "memfd_create"):
                return True
            buffers.append(raw)
            return False

        file = io.BytesIO()
        _Pickler(file, protocol=5, buffer_callback=keep_inside).dump(message)
        pickled = file.getbuffer()
        lengths = b"".join(_LENGTH.pack(one.nbytes) for one in buffers)
        head = _HEADER.pack(pickled.nbytes, len(buffers)) + lengths
        if not buffers:
            with self._sending:
                self._connection.sendall(head + pickled)
            return
        shared = _shared(buffers)
        try:
            with self._sending:
                sent = socket.send_fds(self._connection, [head], [shared])
                self._connection.sendall(head[sent:])
                self._connection.sendall(pickled)
        finally:
            os.close(shared)

    def receive(self) -> Any:
        """The next message. Raises EOFError when the other process has closed its end, or is gone."""
        try:
            head, descriptors, _, _ = socket.recv_fds(self._connection, _HEADER.size, 1)
            size, count = _HEADER.unpack(head + self._exactly(_HEADER.size - len(head), started=bool(head)))
            lengths = [length for (length,) in _LENGTH.iter_unpack(self._exactly(count * _LENGTH.size))]
            pickled = self._exactly(size)
        except OSError as error:
            raise EOFError(str(error)) from error
        if not count:
            return pickle.loads(pickled)  # noqa: S301 - from the other half of this worker
        (shared,) = descriptors
        try:
            memory = memoryview(mmap.mmap(shared, sum(lengths)))
        finally:
            os.close(shared)
        buffers, at = [], 0
        for length in lengths:
            buffers.append(memory[at : at + length])
            at += length
        return pickle.loads(pickled, buffers=buffers)  # noqa: S301 - as above

    def close(self) -> None:
        """Close this end; a `receive` that waits at either end raises."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _exactly(self, size: int, *, started: bool = True) -> bytes:
        if not started:
            raise EOFError
        found = bytearray(size)
        view = memoryview(found)
        while view.nbytes:
            received = self._connection.recv_into(view)
            if not received:
                raise EOFError
            view = view[received:]
        return bytes(found)


class _Pickler(pickle.Pickler):
    """Pickles images so that their pixels are a buffer."""

    def reducer_override(self, value: object) -> Any:
        if type(value) is Image.Image and value.mode in _PLAIN_MODES:
            pixels = pickle.PickleBuffer(value.tobytes())
            return _image, (value.mode, value.size, pixels, dict(value.info))
        return NotImplemented


def _image(mode: str, size: tuple[int, int], pixels: bytes | memoryview, info: dict[str, Any]) -> Image.Image:
    image = Image.frombytes(mode, size, bytes(pixels))
    image.info.update(info)
    return image


def _shared(buffers: Sequence[memoryview]) -> int:
    """The descriptor of a file in memory with those buffers, one behind the other."""
    descriptor = os.memfd_create("farm-engine")
    try:
        for one in buffers:
            rest = one
            while rest.nbytes:
                rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
