import pytest
import torch

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
