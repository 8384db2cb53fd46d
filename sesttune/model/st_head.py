"""The State Transition head: control embeddings and a perturbation in, perturbed cells out.

A residual set transformer. Cells of a set attend to each other in both directions
and without positions, so the order of cells does not matter. Parameter names are
those of the public `StateTransitionPerturbationModel`, so weights move both ways;
with a 512-d embedding and 18,080 genes it has 48,931,616 parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MLP_LAYERS = 4
"""Linear layers of the perturbation, basal and output MLPs."""
RMS_EPS = 1e-6


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of the head; `n_layers` and `n_heads` are the set transformer's."""

    embed_dim: int
    pert_dim: int
    output_dim: int
    hidden_dim: int = 672
    n_layers: int = 4
    n_heads: int = 8
    dropout: float = 0.1


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, RMS_EPS)


class Attention(nn.Module):
    """Bidirectional multi-head attention without bias or positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        sets, cells, width = x.shape
        split = (sets, cells, self.heads, width // self.heads)
        q, k, v = (
            proj(x).view(split).transpose(1, 2)  # [sets, heads, cells, width / heads]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(1, 2).reshape(sets, cells, width))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), inner width 4x (Shazeer, 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, 4 * width, bias=False)
        self.up_proj = nn.Linear(width, 4 * width, bias=False)
        self.down_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, as in Llama."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.mlp = SwiGLU(width)
        self.input_layernorm = RMSNorm(width)
        self.post_attention_layernorm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class STHead(nn.Module):
    """The trained part of the model."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        width, dropout = config.hidden_dim, config.dropout
        self.pert_encoder = mlp(config.pert_dim, width, width, dropout)
        self.basal_encoder = mlp(config.embed_dim, width, width, dropout)
        self.transformer_backbone = Backbone(width, config.n_heads, config.n_layers)
        self.project_out = mlp(width, width, config.output_dim, dropout)

    def forward(self, control_emb: Tensor, pert_emb: Tensor) -> Tensor:
        """Predicted log1p expression [sets, cells, genes], not negative.

        `control_emb` is [sets, cells, embed_dim], `pert_emb` [sets, pert_dim].
        """
        basal = self.basal_encoder(control_emb)
        perturbed = basal + self.pert_encoder(pert_emb)[:, None]
        mixed = self.transformer_backbone(perturbed)
        return F.relu(self.project_out(mixed + basal))


def mlp(width_in: int, hidden: int, width_out: int, dropout: float) -> nn.Sequential:
    """`MLP_LAYERS` linear layers with GELU and dropout between them."""
    layers: list[nn.Module] = []
    for number in range(MLP_LAYERS):
        last = number == MLP_LAYERS - 1
        layers.append(nn.Linear(width_in if number == 0 else hidden, width_out if last else hidden))
        if not last:
            layers += [nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
