"""SqueezeNet 1.1 up to its features, in plain torch.

torchvision has the same network, and its import takes a second and 160 MB of every agent's memory.
Source: Iandola et al. 2016 (arXiv:1602.07360), version 1.1 of its authors' repository; names as in torchvision's
state dict, so that its weights fit.
"""

import torch
from torch import nn

WIDTH = 512


class Fire(nn.Module):
    """Squeeze to few channels, then expand with kernels of 1 and of 3 side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, kernel_size=1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, kernel_size=3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Shape (n, channels, h, w) to (n, 2 * expanded, h, w)."""
        squeezed = self.squeeze_activation(self.squeeze(maps))
        small = self.expand1x1_activation(self.expand1x1(squeezed))
        large = self.expand3x3_activation(self.expand3x3(squeezed))
        return torch.cat([small, large], dim=1)


def squeezenet_features() -> nn.Sequential:
    """(n, 3, h, w) to maps (n, WIDTH, h', w')."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=3, stride=2),
        nn.ReLU(inplace=True),
        _halved(),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        _halved(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        _halved(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )


def _halved() -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
