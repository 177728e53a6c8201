"""How much memory a computation takes, counted tensor by tensor, and how much there is."""

import os
import resource
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GB = 10**9
_FREE_SHARE = 0.7
"""Share of the free memory that is taken where nobody sets a bound."""

_TENSOR_SHARE = 0.6
"""Share of what may be taken that tensors get, the allocator and autograd taking the rest. Measured on a CPU: 0.96
GB of tensors were 1.5 GB of the process."""


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Run ``work``; return the largest number of bytes that its own tensors held at one time.

    On a CPU this counts storages as they come and go: the same number on every machine, unlike resident memory.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        highest: int = torch.cuda.max_memory_allocated(device)
        return highest - int(before)
    meter = _Meter()
    with meter:
        work()
    return meter.peak


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def room(bound_gb: float, device: torch.device) -> int:
    """Return the bytes that tensors may still take, with what comes with them.

    Args:
        bound_gb: What the process may take in all, in GB; 0: most of what is free.
        device: Whose memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        taken = torch.cuda.memory_reserved(device)
    else:
        free, taken = _free_bytes(), _resident_bytes()
    left = bound_gb * GB - taken if bound_gb else free * _FREE_SHARE
    return int(left * _TENSOR_SHARE)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages made while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        old = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in old:
                self._take(leaf.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self._live -= size


def _resident_bytes() -> int:
    """Return the process's resident memory; where the system does not tell, its highest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_bytes() -> int:
    """Return the memory that can be had without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
