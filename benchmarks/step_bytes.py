"""What a GPU would read and write in a step, by part: counted on a CPU, not measured.

    python benchmarks/step_bytes.py                    # the default sizes
    python benchmarks/step_bytes.py --expressed 3000   # sparser cells than the VCC data's

The second step under bfloat16 autocast, not compiled, with the loss in a GPU's pieces, by tensors
without values. Counted are the bytes that each operation takes and gives; views cost nothing, and
of what is indexed only the entries that are taken. A GPU's caches may save some of it.
"""

import argparse
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from step_variants import EMBED_DIM, PERT_DIM
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sesttune.data.readers import DenseReader, ResidentReader
from sesttune.data.sampling import CellSets
from sesttune.model import losses
from sesttune.model.st_head import HeadConfig, STHead

CELLS = 3_000
"""Of the store; a batch takes as many bytes of a larger one."""
FREE = ("empty", "new_empty", "_unsafe_view", "detach", "lift_fresh")
WRITE_ONLY = ("fill_", "zero_", "copy_", "bernoulli_")


class Traffic(TorchDispatchMode):
    """Adds up bytes and FLOPs (of products) under the name of the part that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.bytes, self.flop = "", Counter[str](), Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name, schema = func.__name__, func._schema
        is_view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if func.namespace == "aten" and not is_view and not name.startswith(FREE):
            self.bytes[self.part] += moved(name, schema, args, kwargs or {}, out)
        if name.split(".")[0] in ("mm", "addmm", "bmm", "baddbmm_"):
            factor = args[-2]
            kind = f"{self.part} in {str(factor.dtype).removeprefix('torch.')}"
            self.flop[kind] += 2 * out.numel() * factor.shape[-1]
        return out


def moved(name: str, schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes that an operation reads and writes."""
    if name.startswith(("index.", "index_select", "embedding.")):
        return size(args[1:]) + 2 * size(out)
    if name.startswith(("index_put_", "_index_put_impl_")):
        return size(args[1]) + 2 * size(args[2])
    found = 0 if any(r.alias_info for r in schema.returns) else size(out)
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    for argument in schema.arguments:
        value, written = given.get(argument.name), argument.alias_info is not None
        if argument.name == "grads":  # of the fused optimizer, which only reads them
            written = False
        found += written * size(value)
        if not (written and (argument.is_out or name.startswith(WRITE_ONLY))):
            found += size(value)
    return found


def size(value: Any) -> int:
    """Bytes that lie under the tensors in `value`, repeated ones once."""
    total = 0
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor):
            pairs = zip(tensor.shape, tensor.stride(), strict=True)
            total += tensor.element_size() * int(np.prod([n for n, step in pairs if step]))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("sets", 16), ("cells", 128), ("genes", 18_080), ("expressed", 8_400)):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--hidden-dim", type=int, default=672, help="default: %(default)s")
    args = parser.parse_args()
    losses._at_once = lambda x: (len(x), next(n for n in losses.PIECES if x.shape[-1] % n == 0))
    traffic = count(args)
    for part, found in traffic.bytes.items():
        print(f"{part:<34}{found / 1e9:8.2f} GB")
    for kind, found in traffic.flop.items():
        print(f"{kind:<34}{found / 1e9:8.2f} GFLOP")


def count(args: argparse.Namespace) -> Traffic:
    """Of one step, and of its batch made in both ways."""
    data, cpu = store(args), torch.device("cpu")
    rng = np.random.default_rng(0)
    rows = rng.integers(0, CELLS, (args.sets, args.cells))
    sets = CellSets(rows, rows, np.zeros(args.sets, np.int64))
    kinds = {"batch, store compressed": ResidentReader, "batch, store with its zeros": DenseReader}
    readers = {part: kind(data, cpu) for part, kind in kinds.items()}  # type: ignore[arg-type]
    prepared = {part: reader.prepare(sets) for part, reader in readers.items()}
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = STHead(HeadConfig(EMBED_DIM, PERT_DIM, args.genes, args.hidden_dim))
        optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0, fused=True)
        for _ in range(2):  # the first makes what the optimizer keeps
            optimizer.zero_grad()
            with Traffic() as traffic:
                for part, reader in readers.items():
                    traffic.part = part
                    batch = reader.finish(prepared[part])
                with torch.autocast("cpu", torch.bfloat16):
                    traffic.part = "head forward"
                    predicted = head(batch["control_emb"], batch["pert_emb"])
                    traffic.part = "loss and its gradient"
                    loss = losses.energy_distance(predicted, batch["target"]).mean()
                traffic.part = "backward"
                loss.backward()
                traffic.part = "optimizer"
                optimizer.step()
    return traffic


def store(args: argparse.Namespace) -> SimpleNamespace:
    """What readers want of the data: cells of raw counts, embeddings and features."""
    rng = np.random.default_rng(0)
    indices = np.sort(rng.random((64, args.genes)).argsort(1)[:, : args.expressed], axis=1)
    cells = SimpleNamespace(
        n_cells=CELLS,
        n_genes=args.genes,
        indptr=np.arange(CELLS + 1, dtype=np.int64) * args.expressed,
        indices=indices[rng.integers(64, size=CELLS)].astype(np.uint16).ravel(),
        values=rng.geometric(0.4, CELLS * args.expressed).astype(np.uint16),
        scale=np.full(CELLS, 0.5, np.float32),
    )
    matrix = rng.random((CELLS, EMBED_DIM)).astype(np.float32)
    controls = SimpleNamespace(matrix=matrix, row_of_cell=np.arange(CELLS))
    features = rng.random((150, PERT_DIM)).astype(np.float32)
    return SimpleNamespace(store=cells, controls=controls, features=features)


if __name__ == "__main__":
    main()
