"""Memory that has run out, in whatever words, and a GPU's that others may want."""

import gc

import torch

_WORDS = ("out of memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED")
"""How CUDA, torch on a CPU, C++, and CUDA's libraries say it."""


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
    before = None if error.__suppress_context__ else error.__context__
    return before is not None and is_out_of_memory(before)


def give_back() -> None:
    """Give the GPU back what nothing holds any more: torch keeps it, and it counts as taken."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing, where CUDA is not in use
