"""Which device tensors live on, and how many threads compute."""

import contextlib
from collections.abc import Iterator

import torch

from metarec_shared.errors import SettingsError


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device; ``auto`` takes CUDA where there is one.

    Raises:
        SettingsError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise SettingsError("run.device is cuda, but torch sees no CUDA device; use auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@contextlib.contextmanager
def tiny_numbers_flushed() -> Iterator[None]:
    """Take denormal numbers for zero: the softmax of a catalogue is full of them, and a CPU is slow with each."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: where matrices are small, more threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
