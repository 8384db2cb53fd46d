import subprocess
import sys
from pathlib import Path

import torch

from sesttune.model.se_demo import SESizes, random_encoder, write_demo_encoder, write_encoder

SIZES = SESizes(
    protein=64, width=1_024, hidden=1_024, output=1_024, heads=8, layers=10, pad_length=64
)
VOCABULARY = 500
ALLOWED = 1.3
MEASURE = """
import sys
from pathlib import Path
import torch
from sesttune.model.se_checkpoint import find_files
from sesttune.model.se_encoder import SEEncoder

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def load(folder):
    encoder = SEEncoder(find_files(folder, None, None), device="cpu")
    return encoder, encoder.embed_dim

load(sys.argv[1])  # a small one, for what the libraries themselves take
before = status("VmHWM")
encoder, width = load(sys.argv[2])
assert width == 1034
print(status("VmHWM") - before)
"""


def test_loading_needs_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """Beside them the file holds twice as much of optimizer state and foreign tables."""
    model, proteins = random_encoder(VOCABULARY, SIZES, 0)
    needed = 4 * (sum(parameter.numel() for parameter in model.parameters()) + proteins.numel())
    path = write_encoder(
        tmp_path, "large", model, [f"G{i}" for i in range(VOCABULARY)], proteins, SIZES
    )
    content = torch.load(path, weights_only=True)
    content["optimizer_states"] = [torch.zeros(needed // 4) for _ in range(2)]
    content["hyper_parameters"]["collater"] = {"table": torch.zeros(needed // 4)}
    torch.save(content, path)
    assert path.stat().st_size > 3.9 * needed
    small = write_demo_encoder(tmp_path / "small", [f"G{i}" for i in range(VOCABULARY)])
    command = [sys.executable, "-c", MEASURE, small.parent, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    path.unlink()  # a gigabyte
    assert needed > 200e6
    print(f"{int(done.stdout) / needed:.2f} times the weights")
    assert 0.8 * needed < int(done.stdout) <= ALLOWED * needed
