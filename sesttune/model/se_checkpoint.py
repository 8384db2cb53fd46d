"""Find and read the files of a State Embedding model: checkpoint, settings, protein rows.

Every size comes from the tensors; only the number of heads, the sequence length
and the CLS index come from the settings saved with them. The public loader takes
"some" checkpoint of a folder that holds several; here that is a question to the user.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sesttune.errors import UserError, WrongPlace, check_file, first_line
from sesttune.model.safe_pickle import plain, read_checkpoint
from sesttune.system.atomic import write_text

KEY = "model.kwargs.se_checkpoint_path"
DEMO_NAME = "demo-encoder"
DEMO_LABEL = "demo-encoder (random weights)"


@dataclass(frozen=True)
class SEFiles:
    """Where a model's weights and protein embeddings lie (None: in the checkpoint)."""

    checkpoint: Path
    proteins: Path | None

    @property
    def label(self) -> str:
        """How the encoder is called wherever it is shown."""
        return DEMO_LABEL if self.checkpoint.stem == DEMO_NAME else self.checkpoint.stem


@dataclass(frozen=True)
class SEWeights:
    """What inference needs: tensors by public name, and three settings."""

    tensors: dict[str, torch.Tensor]
    nhead: int
    pad_length: int
    cls_token_idx: int
    symbols: list[str]
    proteins: torch.Tensor
    """[vocabulary, protein width], rows in the order of `symbols`."""


def find_files(
    model_folder: str | None, checkpoint: str | None = None, protein_embeddings: str | None = None
) -> SEFiles:
    """The files of a model folder, or those named; reads none of them.

    Raises UserError where they are missing, or it would be a guess.
    """
    folder = Path(model_folder).expanduser() if model_folder else None
    if checkpoint is not None:
        weights = Path(checkpoint).expanduser()
    elif folder is None:
        raise UserError("no SE model: set model.kwargs.se_model_path, or name a checkpoint")
    else:
        if not folder.is_dir():
            raise WrongPlace(f"model.kwargs.se_model_path: {folder} is not a folder")
        found = sorted(folder.glob("*.ckpt"))
        if not found:
            raise WrongPlace(f"model.kwargs.se_model_path: {folder} holds no .ckpt file")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(f"{folder} holds several checkpoints ({names}): which one? set {KEY}")
        weights = found[0]
    check_file(weights, f"{KEY}: ")
    if protein_embeddings is not None:
        named = Path(protein_embeddings).expanduser()
        check_file(named, "protein embeddings ")
        return SEFiles(weights, named)
    return SEFiles(weights, _proteins_in(folder) if folder is not None else None)


def read_weights(files: SEFiles, config: Path | None = None) -> SEWeights:
    """Read what inference needs. Raises UserError naming what the file lacks."""
    content = read_checkpoint(files.checkpoint)
    state = content.get("state_dict") if isinstance(content, dict) else None
    hyper = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not isinstance(hyper, dict):
        raise UserError(
            f"{KEY}: {files.checkpoint} is not an SE checkpoint: it lacks "
            "state_dict and/or hyper_parameters"
        )
    tensors = {
        name.replace("_orig_mod.", ""): tensor
        for name, tensor in state.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    nhead = _whole(hyper, "nhead", 1, files.checkpoint)
    if "nlayers" in hyper:
        _check_layers(tensors, _whole(hyper, "nlayers", 1, files.checkpoint), files.checkpoint)
    settings = _settings(content, hyper, files.checkpoint, config)
    source = config or files.checkpoint
    pad_length = _whole(settings, "pad_length", 2, source)
    cls_token_idx = _whole(settings, "cls_token_idx", 0, source)
    symbols, proteins = _read_proteins(files, content)
    return SEWeights(tensors, nhead, pad_length, cls_token_idx, symbols, proteins)


def _whole(settings: dict[str, Any], name: str, least: int, path: Path) -> int:
    value = settings.get(name)
    if not isinstance(value, int) or value < least:
        raise UserError(f"{KEY}: {path}: {name}={value!r} must be a whole number, {least} or more")
    return value


def _check_layers(tensors: dict[str, torch.Tensor], layers: int, path: Path) -> None:
    """The tensors are counted for the model's size, so a layer less would not be missed."""
    last = f"transformer_encoder.layers.{layers - 1}.linear1.weight"
    if last not in tensors:
        raise UserError(f"{KEY}: {path} has hyper_parameters.nlayers={layers}, but lacks {last}")


def file_sha256(path: Path, cache: Path | None) -> str:
    """sha256 of a file, remembered in `cache` by path, size and time: SE-600M is 11.5 GB."""
    stat = path.stat()
    identity = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    noted = cache / hashlib.sha256(identity.encode()).hexdigest()[:16] if cache else None
    if noted is not None and noted.is_file():
        return noted.read_text().strip()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if noted is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written to serves as well
            noted.parent.mkdir(parents=True, exist_ok=True)
            write_text(noted, digest)
    return digest


def _proteins_in(folder: Path) -> Path | None:
    exact = folder / "protein_embeddings.pt"
    if exact.is_file():
        return exact
    others = sorted(folder.glob("protein_embeddings*.pt"))
    return others[-1] if others else None


def _settings(
    content: dict[str, Any], hyper: dict[str, Any], path: Path, config: Path | None
) -> dict[str, Any]:
    """`pad_length` and `cls_token_idx`: from `config`, else as saved in the checkpoint."""
    if config is not None:
        check_file(config, "--config ")
        whole: Any = _from_yaml(config.read_text("utf-8", "replace"), config)
    elif isinstance(content.get("cfg_yaml"), str):
        whole = _from_yaml(content["cfg_yaml"], path)
    else:
        whole = plain(hyper.get("cfg"))
    dataset = whole.get("dataset") if isinstance(whole, dict) else None
    wanted = ("pad_length", "cls_token_idx")
    if not isinstance(dataset, dict) or any(dataset.get(key) is None for key in wanted):
        where = f"{KEY}: {path} holds no settings (cfg_yaml or hyper_parameters.cfg)"
        if config is not None:
            where = f"--config {config} holds no settings"
        raise UserError(f"{where} with dataset.pad_length and dataset.cls_token_idx")
    return dataset


def _from_yaml(text: str, path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # yaml and omegaconf raise unrelated families
        raise UserError(f"{path}: its settings are not YAML: {first_line(error)}") from None


def _read_proteins(files: SEFiles, content: dict[str, Any]) -> tuple[list[str], torch.Tensor]:
    where = files.proteins or files.checkpoint
    held = read_checkpoint(where) if files.proteins else content.get("protein_embeds_dict")
    if not isinstance(held, dict) or not held:
        raise WrongPlace(
            f"no protein embeddings: {files.checkpoint} holds none and there is no "
            "protein_embeddings*.pt in the model folder; name the file"
        )
    rows = list(held.values())
    if (
        not all(isinstance(row, torch.Tensor) and row.ndim == 1 for row in rows)
        or len({len(row) for row in rows}) > 1
    ):
        raise UserError(f"{where}: protein embeddings must be vectors of one width")
    return [str(symbol) for symbol in held], torch.stack([row.float() for row in rows])
