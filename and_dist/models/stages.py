"""Find the stages of a network: the modules whose outputs linear classifiers and maps look at.

B local batch, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

PATTERNS = (
    r"layer\d+",  # ResNets
    r"stage\d+",  # ShuffleNets
    r"encoder\.layers\.[^.]+",  # torchvision's ViTs
    r"trunk_output\.[^.]+",  # RegNets
    r"(features|layers|stages|blocks|model)\.[^.]+",
)
"""Names of modules that are stages, in the order in which they are tried."""
LEAST_STAGES = 2


def find_stages(trunk: nn.Module) -> list[nn.Module]:
    """Return the stages of a network in their order, without its whole.

    They are its blocks by one of PATTERNS, else its nonlinearities, else its parts.
    """
    named = dict(trunk.named_modules())
    for pattern in PATTERNS:
        found = [
            module
            for name, module in named.items()
            if re.fullmatch(pattern, name) and list(module.children()) and _learns(module)
        ]
        if len(found) >= LEAST_STAGES:
            return found
    return nonlinearities(trunk) or [part for part in trunk.children() if _learns(part)]


def nonlinearities(trunk: nn.Module) -> list[nn.Module]:
    """Return the nonlinearities of a network before its first fully connected layer."""
    modules = list(trunk.modules())
    linear = [at for at, m in enumerate(modules) if isinstance(m, nn.Linear)] or [len(modules)]
    return [m for m in modules[: linear[0]] if isinstance(m, (nn.ReLU, nn.Tanh))]


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of a network: members of its lists that have parts of their own.

    Of parts within parts, only the outer ones are returned.
    """
    found: dict[str, nn.Module] = {}
    for name, module in trunk.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and name not in found:
            for own, part in module.named_children():
                is_within = any(f"{name}.".startswith(f"{outer}.") for outer in found)
                is_list = isinstance(part, (nn.Sequential, nn.ModuleList))
                if not is_within and not is_list and list(part.children()) and _learns(part):
                    found[f"{name}.{own}" if name else own] = part
    return list(found.values())


def as_maps(output: Tensor) -> Tensor:
    """Return an output as feature maps [B, C, H, W], or as it is if it has no places.

    Tokens [B, T, C] lie on the largest square grid that they fill; those before it, such as a class
    token, are left out. Maps [B, H, W, C] are turned; images are squares, so their sides tell.
    """
    if output.ndim == 3:
        side = int(output.shape[1] ** 0.5)
        grid = output[:, output.shape[1] - side * side :]
        return grid.transpose(1, 2).reshape(len(output), -1, side, side)
    if output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3]:
        return output.permute(0, 3, 1, 2)
    return output


def _learns(module: nn.Module) -> bool:
    """Return whether a module has parameters."""
    return any(True for _ in module.parameters())
