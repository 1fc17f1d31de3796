"""Hold the figures of the paper (Huang, Dong, Gong, Zhu, ICML 2019): top-1 accuracy in %, by place.

`table 1/AND/CIFAR10` -> {"knn": 74.8, "linear conv5": 77.6}: table or figure, row, column.
"""

from __future__ import annotations

TITLES = {
    "table 1": "Small images, AlexNet",
    "table 2": "ImageNet, AlexNet",
    "table 3": "Fine-grained classes, ResNet18",
    "table 4": "Networks, CIFAR10 unless said otherwise",
    "table 5": "First features, CIFAR10, ResNet18",
    "table 6": "One-off discovery and the curriculum, CIFAR10, ResNet18",
    "figure 4": "Neighbours k, CIFAR10, ResNet18",
    "figure 5": "Rounds R, CIFAR10, ResNet18",
    "section 4.2": "Epochs of a round, CIFAR10, ResNet18",
}
"""Titles of the paper's tables and figures."""
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc")
"""Layers that table 2 gives linear classifiers for."""


def _small_images() -> dict[str, dict[str, float]]:
    """Return the figures of table 1."""
    columns = ("CIFAR10", "CIFAR100", "SVHN")
    rows = {
        "Split-Brain": ((11.7, 1.3, 19.7), (67.1, 39.0, 77.3)),
        "Counting": ((41.7, 15.9, 43.4), (50.9, 18.2, 63.4)),
        "DeepCluster": ((62.3, 22.7, 84.9), (77.9, 41.9, 92.0)),
        "Instance": ((60.3, 32.7, 79.8), (70.1, 39.4, 89.3)),
        "AND": ((74.8, 41.5, 90.9), (77.6, 47.9, 93.7)),
        "Supervised": ((91.9, 69.7, 96.5), (91.8, 71.0, 96.1)),
    }
    return {
        f"table 1/{row}/{column}": {"knn": knn[at], "linear conv5": linear[at]}
        for row, (knn, linear) in rows.items()
        for at, column in enumerate(columns)
    }


def _imagenet() -> dict[str, dict[str, float]]:
    """Return the figures of table 2."""
    linear = {
        "Random": (11.6, 17.1, 16.9, 16.3, 14.1, 12.0),
        "Supervised": (19.3, 36.3, 44.2, 48.3, 50.5, None),
        "Context": (17.5, 23.0, 24.5, 23.2, 20.6, 30.4),
        "BiGAN": (17.7, 24.5, 31.0, 29.9, 28.0, 32.2),
        "Colour": (13.1, 24.8, 31.0, 32.6, 31.8, 35.2),
        "Jigsaw": (19.2, 30.1, 34.7, 33.9, 28.3, 38.1),
        "NAT": (None, None, None, None, None, 36.0),
        "Counting": (18.0, 30.6, 34.3, 32.5, 25.7, None),
        "Split-Brain": (17.7, 29.3, 35.4, 35.2, 32.8, None),
        "DeepCluster": (13.4, 32.3, 41.0, 39.6, 38.2, None),
        "Instance": (16.8, 26.5, 31.8, 34.1, 35.6, None),
        "AND": (15.6, 27.0, 35.9, 39.7, 37.9, 36.7),
    }
    knn = {
        "Random": 3.5,
        "Split-Brain": 11.8,
        "DeepCluster": 26.8,
        "Instance": 31.3,
        "AND": 31.3,
    }
    figures = {}
    for row, by_layer in linear.items():
        layers = zip(LAYERS, by_layer, strict=True)
        figures[f"table 2/{row}/ImageNet"] = {
            **{f"linear {layer}": top1 for layer, top1 in layers if top1 is not None},
            **({"knn": knn[row]} if row in knn else {}),
        }
    return figures


def _by_knn(figures: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return figures that are all kNN accuracies in the form of FIGURES."""
    return {place: {"knn": top1} for place, top1 in figures.items()}


FIGURES: dict[str, dict[str, float]] = {
    **_small_images(),
    **_imagenet(),
    **_by_knn(
        {
            "table 3/Instance/CUB200": 11.6,
            "table 3/Instance/Dogs": 27.0,
            "table 3/AND/CUB200": 14.4,
            "table 3/AND/Dogs": 32.3,
            "table 4/AlexNet/CIFAR10": 74.8,
            "table 4/ResNet18/CIFAR10": 86.3,
            "table 4/ResNet101/CIFAR10": 88.4,
            "table 4/AlexNet/ImageNet": 31.3,
            "table 4/ResNet18/ImageNet": 41.2,
            "table 5/Random Model/CIFAR10": 85.7,
            "table 5/Instance Model/CIFAR10": 86.3,
            "table 6/One-off/CIFAR10": 84.2,
            "table 6/Curriculum/CIFAR10": 86.3,
            "figure 4/k = 1/CIFAR10": 86.3,
            "figure 4/k = 10/CIFAR10": 83.0,
            "figure 4/k = 50/CIFAR10": 79.3,
            "figure 4/k = 100/CIFAR10": 78.2,
            "figure 5/R = 1/CIFAR10": 84.2,
            "figure 5/R = 2/CIFAR10": 85.3,
            "figure 5/R = 4/CIFAR10": 86.3,
            "figure 5/R = 10/CIFAR10": 86.7,
            "section 4.2/50 epochs/CIFAR10": 83.3,
            "section 4.2/100 epochs/CIFAR10": 84.8,
            "section 4.2/200 epochs/CIFAR10": 86.3,
        }
    ),
}
"""All figures, by table or figure, row and column."""
