import pytest
import torch
from torch import Tensor

from sesttune.model.st_head import HeadConfig, STHead

SMALL = HeadConfig(12, 8, 30, hidden_dim=32, n_layers=2, n_heads=4)


def test_the_plans_head_has_exactly_its_parameters() -> None:
    with torch.device("meta"):
        head = STHead(HeadConfig(embed_dim=512, pert_dim=5_120, output_dim=18_080))
    assert sum(p.numel() for p in head.parameters() if p.requires_grad) == 48_931_616


def test_parameter_names_are_the_public_ones() -> None:
    names = set(STHead(SMALL).state_dict())
    for expected in (
        "pert_encoder.0.weight",
        "basal_encoder.9.bias",
        "project_out.3.weight",
        "transformer_backbone.layers.1.self_attn.o_proj.weight",
        "transformer_backbone.layers.0.mlp.gate_proj.weight",
        "transformer_backbone.layers.0.input_layernorm.weight",
        "transformer_backbone.layers.0.post_attention_layernorm.weight",
        "transformer_backbone.norm.weight",
    ):
        assert expected in names


def test_shapes_and_sign() -> None:
    head = STHead(SMALL).eval()
    out = head(torch.randn(3, 5, 12), torch.randn(3, 8))
    assert out.shape == (3, 5, 30)
    assert (out >= 0).all()


def test_cells_of_a_set_have_no_order() -> None:
    head = STHead(SMALL).eval()
    control, pert = torch.randn(2, 6, 12), torch.randn(2, 8)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.allclose(head(control, pert)[:, order], head(control[:, order], pert), atol=1e-5)


def test_cells_see_each_other_within_a_set_and_not_across_sets() -> None:
    head = STHead(SMALL).eval()
    control, pert = torch.randn(2, 6, 12), torch.randn(2, 8)
    changed = control.clone()
    changed[0, 5] += 1
    before, after = head(control, pert), head(changed, pert)
    assert not torch.allclose(before[0, 0], after[0, 0], atol=1e-5)
    assert torch.equal(before[1], after[1])


def by_definition(head: STHead, control: Tensor, pert: Tensor) -> Tensor:
    """One set through the published formulas, in float64: cells [cells, embed_dim], pert [dim]."""
    weights = {name: tensor.double() for name, tensor in head.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def mlp(name: str, x: Tensor) -> Tensor:
        for number in (0, 3, 6):
            x = linear(f"{name}.{number}", x)
            x = x * (1 + torch.erf(x / 2**0.5)) / 2
        return linear(f"{name}.9", x)

    def norm(name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]

    def attention(name: str, x: Tensor) -> Tensor:
        heads, mixed = head.config.n_heads, []
        parts = (linear(f"{name}.{part}_proj", x).chunk(heads, -1) for part in "qkv")
        for q, k, v in zip(*parts, strict=True):
            scores = (q @ k.T / q.shape[1] ** 0.5).exp()
            mixed.append(scores / scores.sum(1, keepdim=True) @ v)
        return linear(f"{name}.o_proj", torch.cat(mixed, -1))

    basal = mlp("basal_encoder", control.double())
    x = basal + mlp("pert_encoder", pert.double())
    for number in range(head.config.n_layers):
        layer = f"transformer_backbone.layers.{number}"
        x = x + attention(f"{layer}.self_attn", norm(f"{layer}.input_layernorm", x))
        y = norm(f"{layer}.post_attention_layernorm", x)
        gate = linear(f"{layer}.mlp.gate_proj", y)
        gated = gate / (1 + (-gate).exp()) * linear(f"{layer}.mlp.up_proj", y)
        x = x + linear(f"{layer}.mlp.down_proj", gated)
    return mlp("project_out", norm("transformer_backbone.norm", x) + basal).clamp(min=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0], ids=["inputs of next to nothing", "usual inputs"])
def test_forward_is_what_the_formulas_say(scale: float) -> None:
    """Else a head would no longer be what the public program runs with the same weights."""
    torch.manual_seed(0)
    head = STHead(SMALL).eval()
    with torch.no_grad():
        for name, tensor in head.named_parameters():  # so that every part counts
            if tensor.ndim == 2:
                tensor.normal_(0, 1.5 / tensor.shape[1] ** 0.5)
            else:
                tensor.uniform_(0.5, 1.5) if "norm" in name else tensor.normal_(0, 0.1 * scale)
        head.project_out[-1].bias.fill_(0.1)
    control, pert = scale * torch.randn(2, 6, 12), scale * torch.randn(2, 8)
    with torch.inference_mode():
        found = head(control, pert)
        wanted = torch.stack([by_definition(head, *one) for one in zip(control, pert, strict=True)])
    assert (found.double() - wanted).abs().max() < 1e-5 * wanted.max()
    assert 0.3 < (wanted > 0).double().mean() < 0.9


@pytest.mark.oracle
@pytest.mark.parametrize("cells", [4, 16])
def test_forward_equals_the_public_model(cells: int) -> None:
    state_transition = pytest.importorskip("state.tx.models.state_transition")
    config = HeadConfig(24, 16, 40, hidden_dim=32, n_layers=2, n_heads=4, dropout=0.1)
    public = state_transition.StateTransitionPerturbationModel(
        input_dim=24,
        hidden_dim=32,
        output_dim=40,
        pert_dim=16,
        gene_dim=40,
        predict_residual=True,
        distributional_loss="energy",
        transformer_backbone_key="llama",
        transformer_backbone_kwargs={
            "bidirectional_attention": True,
            "vocab_size": 1,
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "max_position_embeddings": 64,
        },
        output_space="gene",
        embed_key=None,
        cell_set_len=cells,
        n_encoder_layers=4,
        n_decoder_layers=4,
        activation="gelu",
        dropout=0.1,
        batch_size=2,
    ).eval()
    head = STHead(config).eval()
    weights = {k: v for k, v in public.state_dict().items() if k in head.state_dict()}
    assert set(weights) == set(head.state_dict())
    head.load_state_dict(weights)
    control, pert = torch.randn(2, cells, 24), torch.randn(2, 16)
    batch = {
        "ctrl_cell_emb": control.reshape(-1, 24),
        "pert_emb": pert[:, None].expand(-1, cells, -1).reshape(-1, 16),
        "pert_cell_emb": torch.zeros(2 * cells, 40),
        "batch": torch.zeros(2 * cells, 1),
    }
    with torch.inference_mode():
        expected = public(batch).reshape(2, cells, 40)
        assert torch.allclose(head(control, pert), expected, atol=1e-5)
