"""Messages between a worker and its engine arrive whole, whatever is in them."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from farm.errors import DeviceFailed
from workers.channel import LARGE, Channel
from workers.media.artifacts import Clip, Sound


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def across(ends: tuple[Channel, Channel], message: object) -> object:
    sender = threading.Thread(target=ends[0].send, args=(message,))
    sender.start()
    received: object = ends[1].receive()
    sender.join()
    return received


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "F"])
@pytest.mark.parametrize("side", [7, 640])
def test_an_image_arrives_with_its_pixels(ends: tuple[Channel, Channel], mode: str, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(noise)
    image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    image.info["dpi"] = (72, 72)
    received = across(ends, {"image": image})
    assert isinstance(received, dict)
    found = received["image"]
    assert (found.mode, found.size, found.info["dpi"]) == (mode, image.size, (72, 72))
    assert found.tobytes() == image.tobytes()
    found.putpixel((0, 0), 1 if mode not in ("RGB", "RGBA") else (1,) * len(mode))  # it is the receiver's own


def test_a_clip_of_many_megabytes_does_not_go_through_the_socket(ends: tuple[Channel, Channel]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (30, 480, 640, 3), np.uint8)
    sound = Sound(np.linspace(-1, 1, 100_000, dtype=np.float32)[:, None], 16_000)
    ends[0].send(Clip(frames, 8.0, sound))  # nobody reads: the socket's buffer holds what goes through it
    received = ends[1].receive()
    assert isinstance(received, Clip)
    assert isinstance(received.frames, np.ndarray)
    assert np.array_equal(received.frames, frames)
    assert received.sound is not None
    assert np.array_equal(received.sound.samples, sound.samples)
    received.frames[0] = 0


def test_memory_and_descriptors_of_messages_are_given_back(ends: tuple[Channel, Channel]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        ends[0].send(np.zeros(2 * LARGE, np.uint8))
        ends[1].receive()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # the directory itself


@given(st.recursive(st.none() | st.integers() | st.text() | st.binary(max_size=200_000), st.lists, max_leaves=5))
def test_any_message_arrives(message: object) -> None:
    one, other = (Channel(end) for end in socket.socketpair())
    assert across((one, other), message) == message
    one.close()
    with pytest.raises(EOFError):
        other.receive()
    other.close()


def test_an_end_that_is_gone_is_an_error_to_the_other(ends: tuple[Channel, Channel]) -> None:
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()
    with pytest.raises(OSError, match=r"."):
        ends[1].send(b"x" * 10)


def test_messages_of_many_threads_do_not_mix(ends: tuple[Channel, Channel]) -> None:
    def send(number: int) -> None:
        for size in (10, LARGE, 3 * LARGE):
            ends[0].send(np.full(size, number, np.uint8))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(24):
        received = ends[1].receive()
        assert len(np.unique(received)) == 1
    for thread in threads:
        thread.join()


def test_a_failed_device_says_across_processes_whether_it_had_started_the_job() -> None:
    received = pickle.loads(pickle.dumps(DeviceFailed("it fell off the bus", started=True)))
    assert isinstance(received, DeviceFailed)
    assert (str(received), received.started) == ("it fell off the bus", True)


def test_shared_memory_has_no_name_that_a_killed_process_could_leave_behind(ends: tuple[Channel, Channel]) -> None:
    before = set(Path("/dev/shm").iterdir())
    ends[0].send(np.zeros(4 * LARGE, np.uint8))
    assert set(Path("/dev/shm").iterdir()) <= before
    ends[1].receive()
