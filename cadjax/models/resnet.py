"""ResNet in 2D and 3D with named feature maps.

He et al. 2016, https://arxiv.org/abs/1512.03385, with the stride of a
bottleneck on its 3x3 convolution, as torchvision and MONAI have it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadjax.core import lookup
from cadjax.models import conv_cpu, layers

# depth: (blocks of each stage, whether they are bottlenecks)
DEPTHS = {
  10: ((1, 1, 1, 1), False),
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
}
OUTPUT_STRIDES = (8, 16, 32)
EXPANSION = 4


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or a 1x1, 3x3, 1x1 bottleneck.

  Attributes:
    features: channels inside; a bottleneck gives four times as many.
    bottleneck: which of the two kinds.
    strides: step in voxels.
    dilation: of the convolution that has the stride, and of later ones.
    norm: kind of normalisation, see `layers.norm`.
    zero_init: whether the last scale starts at zero.
    axis_name: see `layers.norm`.
    dtype: type to compute in.
    conv: the mode of `layers.conv`.
  """

  features: int
  bottleneck: bool
  strides: int = 1
  dilation: tuple[int, int] = (1, 1)
  norm: str = "batch"
  zero_init: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32
  conv: str = "auto"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [B, *space, C] to [B, *ceil(space / strides), features]."""
    steps = _bottleneck(self) if self.bottleneck else _basic(self)
    norm = partial(
      layers.norm,
      self.norm,
      train=train,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
    conv = partial(layers.Conv, dtype=self.dtype, mode=self.conv)
    y = x
    for i, (features, size, strides, dilation) in enumerate(steps, 1):
      y = conv(features, size, strides, dilation, name=f"conv{i}")(y)
      last = i == len(steps)
      init = nn.initializers.zeros if last and self.zero_init else None
      scale = {"scale_init": init} if init else {}
      y = norm(features, relu=not last, name=f"norm{i}", **scale)(y)
    if self.strides != 1 or x.shape[-1] != y.shape[-1]:
      x = conv(y.shape[-1], 1, self.strides, name="conv_skip")(x)
      x = norm(y.shape[-1], name="norm_skip")(x)
    return nn.relu(x + y)


def _basic(block: Block) -> list[tuple[int, int, int, int]]:
  before, after = block.dilation
  return [
    (block.features, 3, block.strides, before),
    (block.features, 3, 1, after),
  ]


def _bottleneck(block: Block) -> list[tuple[int, int, int, int]]:
  return [
    (block.features, 1, 1, 1),
    (block.features, 3, block.strides, block.dilation[0]),
    (block.features * EXPANSION, 1, 1, 1),
  ]


class ResNet(nn.Module):
  """A residual network for classification that also returns its feature maps.

  With an `output_stride` below 32 the last stages keep their resolution and
  dilate their kernels instead, with the same parameters: the map at stride 32
  is then a subsampling of the larger map.

  Attributes:
    ndim: 2 or 3 spatial axes.
    depth: a key of `DEPTHS`.
    width: channels of the stem and inside the first stage.
    num_classes: number of logits.
    norm: kind of normalisation, see `layers.norm`.
    output_stride: 32, 16 or 8: voxels of the image per cell of the last map.
    remat: whether each block's activations are recomputed in the backward
      pass, which takes about a third more time and much less memory.
    zero_init: whether each block starts as the identity (the scale of its
      last normalisation is zero, Goyal et al. 2017). MONAI does not.
    axis_name: the mapped axis over whose devices BatchNorm takes means.
    dtype: type to compute in; parameters, statistics and logits are float32.
    conv: the mode of `layers.conv`: "auto", "exact" or "lax".
  """

  ndim: int = 3
  depth: int = 50
  width: int = 64
  num_classes: int = 2
  norm: str = "batch"
  output_stride: int = 32
  remat: bool = False
  zero_init: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32
  conv: str = "auto"

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the logits and the named feature maps of `image`.

    Every map passes through `self.perturb` under its own name, so the
    gradient with respect to the collection "perturbations" is the gradient
    at that map.

    Args:
      image: [B, H, W, C] or [B, D, H, W, C], scaled to about [0, 1].
      train: whether BatchNorm takes the statistics of the batch.

    Returns:
      Logits [B, num_classes] in float32, and the maps "stem" (stride 2),
      "stage1" (4), ... "stage4" (`output_stride`), each [B, *space, C].
    """
    features = self.trunk(image, train)
    head = nn.Dense(self.num_classes, kernel_init=layers.HEAD_INIT, name="head")
    return head(layers.global_mean(features["stage4"])), features

  def trunk(self, image: jax.Array, train: bool) -> dict[str, jax.Array]:
    """Returns the named feature maps of `image`; see `__call__`."""
    if image.ndim != self.ndim + 2:
      raise ValueError(
        f"a {self.ndim}D model takes {self.ndim + 2} axes (batch, space,"
        f" channels); the image has shape {image.shape}"
      )
    features = {}
    x = layers.Conv(
      self.width, 7, 2, dtype=self.dtype, mode=self.conv, name="conv_stem"
    )(image)
    x = layers.norm(
      self.norm,
      self.width,
      train=train,
      relu=True,
      axis_name=self.axis_name,
      dtype=self.dtype,
      name="norm_stem",
    )(x)
    x = features["stem"] = self.perturb("stem", x)
    x = layers.max_pool(x, mode=self.conv)
    for stage, blocks in enumerate(_plan(self), 1):
      for i, options in enumerate(blocks, 1):
        x = self._block(f"stage{stage}_block{i}", options)(x, train)
      x = features[f"stage{stage}"] = self.perturb(f"stage{stage}", x)
    return features

  @nn.nowrap
  def check(self) -> None:
    """Raises `lookup.ConfigError` where there is no such variant."""
    for name, known in (
      ("ndim", conv_cpu.LAYOUTS),
      ("depth", DEPTHS),
      ("output_stride", OUTPUT_STRIDES),
    ):
      value = getattr(self, name)
      if value not in known:
        raise lookup.ConfigError(
          f"config.model.{name} is {value!r}; it must be one of"
          f" {', '.join(map(str, known))}"
        )
    if self.width < 1:
      raise lookup.ConfigError(
        f"config.model.width is {self.width}; it must be >= 1"
      )
    lookup.look_up(layers.NORMS, self.norm, "norm")

  def _block(self, name: str, options: dict[str, Any]) -> nn.Module:
    kind = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    return kind(
      bottleneck=DEPTHS[self.depth][1],
      norm=self.norm,
      zero_init=self.zero_init,
      axis_name=self.axis_name,
      dtype=self.dtype,
      conv=self.conv,
      name=name,
      **options,
    )


def _plan(model: ResNet) -> list[list[dict[str, Any]]]:
  """Returns the features, strides and dilations of each block by stage."""
  plan, stride, dilation = [], 4, 1
  for stage, count in enumerate(DEPTHS[model.depth][0]):
    wanted = 1 if stage == 0 else 2
    strides = wanted if stride * wanted <= model.output_stride else 1
    before, dilation = dilation, dilation * wanted // strides
    stride *= strides
    first = {"strides": strides, "dilation": (before, dilation)}
    rest = {"strides": 1, "dilation": (dilation, dilation)}
    features = model.width * 2**stage
    plan.append(
      [{"features": features, **(rest if i else first)} for i in range(count)]
    )
  return plan
