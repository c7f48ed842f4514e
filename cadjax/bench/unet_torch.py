"""The U-Net of `cadjax.models.unet` in PyTorch, the rival of its benchmark.

MONAI's networks of that name have other stages and other ways up. The parts
have the names of cadjax's parameters, whose values it can so be given.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class UNet(nn.Module):
  """A U-Net.

  Args:
    options: config.model of a U-Net, all its fields.
    num_classes: K, background included.
  """

  def __init__(self, options: Mapping[str, Any], num_classes: int):
    super().__init__()
    features, self.depth = options["features"], len(options["features"])
    heads = 1
    if options["deep_supervision"]:
      heads = min(3, self.depth - 2)
    self.parts = nn.ModuleDict()
    before = 1
    for i, channels in enumerate(features, 1):
      name = f"enc{i}" if i < self.depth else "bottleneck"
      self.parts[f"{name}_block"] = Stage(
        options, before, channels, stride=1 if i == 1 else 2
      )
      before = channels
    for i in range(self.depth - 1, 0, -1):
      channels = features[i - 1]
      self.parts[f"dec{i}_block"] = Stage(
        options, channels, channels, coarse=features[i]
      )
    self.heads = ["head", "head2", "head3"][:heads]
    for name, channels in zip(self.heads, features, strict=False):
      self.parts[name] = _conv(options, channels, num_classes, 1, bias=True)

  def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Maps [N, 1, *space] to logits [N, K, *space].

    In training with deep supervision to a tuple of those at strides 1, 2, 4.
    """
    skipped = []
    for i in range(1, self.depth):
      x = self.parts[f"enc{i}_block"](x)
      skipped.append(x)
    x = self.parts["bottleneck_block"](x)
    maps = []
    for i in range(self.depth - 1, 0, -1):
      x = self.parts[f"dec{i}_block"](skipped.pop(), x)
      maps.insert(0, x)
    if not self.training or len(self.heads) == 1:
      return self.parts["head"](x)
    pairs = zip(self.heads, maps, strict=False)
    return tuple(self.parts[name](each) for name, each in pairs)


class Stage(nn.Module):
  """Two convolutions, in the decoder after upsampling a coarser map."""

  def __init__(
    self,
    options: Mapping[str, Any],
    channels: int,
    features: int,
    *,
    stride: int = 1,
    coarse: int = 0,
  ):
    super().__init__()
    conv, norm = partial(_conv, options), partial(_norm, options)
    self.gate = self.conv_skip = None
    if coarse:
      if options["attention"]:
        self.gate = Gate(options, channels, coarse)
      self.linear = options["upsampling"] == "linear"
      if self.linear:
        self.up = conv(coarse, features, 1)
      else:  # What a convolution and depth to space are together.
        make = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[options["ndim"]]
        self.up = make(coarse, features, 2, 2, bias=False)
      channels += features
    self.conv1, self.norm1 = conv(channels, features, 3, stride), norm(features)
    self.conv2, self.norm2 = conv(features, features, 3), norm(features)
    if options["residual"]:
      self.conv_skip = conv(channels, features, 1, stride)
      self.norm_skip = norm(features)

  def forward(
    self, x: torch.Tensor, coarse: torch.Tensor | None = None
  ) -> torch.Tensor:
    """Maps [N, C, *space] to [N, features, *(space / stride)].

    Args:
      x: the map.
      coarse: in the decoder, [N, C', *(space / 2)].
    """
    if coarse is not None:
      if self.gate is not None:
        x = self.gate(x, coarse)
      coarse = self.up(coarse)
      x = torch.cat([x, _upsample2(coarse) if self.linear else coarse], 1)
    y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
    y = self.norm2(self.conv2(y))
    if self.conv_skip is not None:
      y = y + self.norm_skip(self.conv_skip(x))
    return functional.relu(y, inplace=True)


class Gate(nn.Module):
  """Weighs a map by what a coarser one knows."""

  def __init__(self, options: Mapping[str, Any], channels: int, coarse: int):
    super().__init__()
    inside = max(1, channels // 2)
    self.conv_skip = _conv(options, channels, inside, 1, 2)
    self.conv_coarse = _conv(options, coarse, inside, 1)
    self.norm = _norm(options, inside)
    self.weight = _conv(options, inside, 1, 1, bias=True)

  def forward(self, x: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Maps [N, C, *space] and [N, C', *(space / 2)] to [N, C, *space]."""
    a = self.norm(self.conv_skip(x) + self.conv_coarse(coarse))
    weight = self.weight(functional.relu(a, inplace=True))
    return x * _upsample2(weight.sigmoid())


def _conv(options, channels, features, size, stride=1, *, bias=False):
  make = {2: nn.Conv2d, 3: nn.Conv3d}[options["ndim"]]
  padding = (size - 1) // 2
  return make(channels, features, size, stride, padding, bias=bias)


def _norm(options, channels: int) -> nn.Module:
  if options["norm"] == "group":
    return nn.GroupNorm(math.gcd(32, channels), channels)
  kind = {"batch": "BatchNorm", "instance": "InstanceNorm"}[options["norm"]]
  make = getattr(nn, f"{kind}{options['ndim']}d")
  return make(channels, affine=True)


def _upsample2(x: torch.Tensor) -> torch.Tensor:
  """`layers.upsample2`: the last cells repeated, corners aligned."""
  space = x.shape[2:]
  x = functional.pad(x, (0, 1) * len(space), mode="replicate")
  x = functional.interpolate(
    x,
    size=[2 * n + 1 for n in space],
    mode={2: "bilinear", 3: "trilinear"}[len(space)],
    align_corners=True,
  )
  return x[(..., *(slice(2 * n) for n in space))]
