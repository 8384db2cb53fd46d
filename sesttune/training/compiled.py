"""The head compiled by torch (`training.compile`): fewer kernels, fewer calls.

What was compiled is kept on disk (TORCHINDUCTOR_CACHE_DIR, else torchinductor_USER in the
folder for temporary files), so the next trial of the same sizes, in any process of the
machine, loads it.
"""

import threading
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from sesttune.config.schema import TrainingConfig
from sesttune.errors import UserError
from sesttune.model.st_head import STHead
from sesttune.system.compiler import missing

Predict = Callable[[Tensor, Tensor], Tensor]
"""Control embeddings and perturbations to predicted cells, as `STHead.forward`."""

NOT_COMPILED = ("auto", "none")
"""`auto` is for a sweep to settle (`search/compiling.py`); a trial by itself is not compiled."""


def predictor(head: STHead, mode: str, accumulate: int) -> Predict:
    """What predicts in a training step of `accumulate` passes: the head, compiled or not.

    `default` fuses operations; `reduce-overhead` also records them as CUDA graphs, which a GPU
    runs by one call. A graph's gradients lie where its next run writes, so with several
    passes a step it is `default`.
    """
    if mode in NOT_COMPILED:
        return head.__call__
    _let_this_thread_record()
    forget_compiled(mode)
    if accumulate > 1:
        mode = "default"
    compiled: Predict = torch.compile(head.forward, mode=mode, fullgraph=True, dynamic=False)
    return compiled


def forget_compiled(mode: str) -> None:
    """Let go of what this process compiled for a trial, and of the memory of its CUDA graphs.

    Else it keeps all, and gives up at the eighth; graphs are let go by the thread that made them.
    """
    if mode not in NOT_COMPILED:
        torch.compiler.reset()


def _let_this_thread_record() -> None:
    """Give the thread what torch keeps of its CUDA graphs, as torch 2.13 does by itself.

    Before, only the thread that imported the module had it, and the others failed an assertion; a
    worker that is kept runs each of its trials in a thread of its own.
    """
    from torch._inductor import cudagraph_trees as trees

    if hasattr(trees, "_initialize_tls") or hasattr(trees.local, "tree_manager_containers"):
        return
    trees.local.tree_manager_containers = {}
    trees.local.tree_manager_locks = defaultdict(threading.Lock)
    for name in ("tree_manager_containers", "tree_manager_locks"):
        torch._C._stash_obj_in_tls(name, getattr(trees.local, name))


def check_compiler(training: TrainingConfig) -> None:
    """Raise UserError where the head is to be compiled and this machine cannot."""
    if training.compile not in NOT_COMPILED and (lacking := missing()) is not None:
        raise UserError(
            f"training.compile={training.compile} needs {lacking}; install it, or set "
            "training.compile=none"
        )
