"""Name settings of today's recipes that a GPU has to compute as a CPU does."""

from __future__ import annotations

RECIPES: dict[str, tuple[str, ...]] = {
    "adamw": (
        "optim.name=adamw",
        "optim.lr=0.001",
        "optim.weight_decay_of=matrices",
        "optim.schedule=cosine",
        "optim.span=run",
        "optim.warmup_epochs=0.5",
        "optim.clip_norm=1.0",
        "optim.layer_decay=0.7",
    ),
    "unfused adamw": ("optim.name=adamw", "optim.lr=0.001", "optim.fused=false"),
    "lars": ("optim.name=lars", "optim.lr_per_256=0.3", "optim.clip_norm=5.0"),
    "a batch in parts": ("optim.accumulate=3",),
    "blocks computed again": (
        "encoder.name=resnet18",
        "optim.lr=0.001",
        "encoder.checkpointing=true",
        "encoder.head=mlp",
        "encoder.hidden_dim=32",
    ),
    "a transformer": (
        "encoder.name=torchvision/vit_b_16",
        "encoder.options={patch_size: 8, num_layers: 2, num_heads: 2, hidden_dim: 32, mlp_dim: 64}",
        "encoder.checkpointing=true",
    ),
    "another network": ("encoder.name=torchvision/shufflenet_v2_x0_5", "optim.lr=0.001"),
}
"""The name of a recipe -> the keys in which it differs from configs/debug.yaml."""
COMPARED = {"blocks computed again": 2, "another network": 2}
"""The first steps whose losses are compared, where they are not all: batch norm over few images
multiplies what sums round by a hundred in a step."""
