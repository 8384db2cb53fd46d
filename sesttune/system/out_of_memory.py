"""Memory that has run out, in whatever words, and a GPU's that others may want."""

import gc

import torch

CONTEXT_GIB = 0.7
"""What a process takes of a GPU beside its tensors (CUDA and its kernels)."""
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
)
"""How CUDA, torch on a CPU, C++, cuBLAS, and cuDNN since version 9 say it."""
_UNREADY, _TO_BE_READY_GIB = "STATUS_NOT_INITIALIZED", 1.0
"""What cuBLAS and cuDNN say of themselves where a full GPU keeps them from starting, but also where
the GPU has failed; and more than they take of it when they start."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is short, on a device or on the host.

    Or that over which it was raised: what cleans up after a failed step (ending the recording of a
    CUDA graph, moving the model off the GPU) is CUDA's too, and may fail in its turn.
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):  # as torch's errors are
        return False
    if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in _WORDS):
        return True
    if _UNREADY in str(error) and _is_full():
        return True
    before = None if error.__suppress_context__ else error.__context__
    return before is not None and is_out_of_memory(before)


def _is_full() -> bool:
    """Whether the GPU has no room for a library of CUDA's; not where it answers no more."""
    try:
        return torch.cuda.mem_get_info()[0] < _TO_BE_READY_GIB * 2**30
    except RuntimeError:
        return False


def keep_to_share(device: torch.device, share: float) -> None:
    """Have this process take no more than `share` of a GPU, its CUDA context included.

    torch keeps what it has freed until its own memory runs out: without a limit a trial's neighbour
    would run out first, and make its micro-batch smaller for want of memory that nothing uses.
    """
    if device.type == "cuda" and share < 1:
        total = torch.cuda.mem_get_info(device)[1]
        fraction = max(0.0, share - CONTEXT_GIB * 2**30 / total)
        torch.cuda.set_per_process_memory_fraction(fraction, device)


def give_back() -> None:
    """Give the GPU back what nothing holds any more: torch keeps it, and it counts as taken."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing, where CUDA is not in use
