"""ResNet in 2D and 3D with named feature maps.

He et al. 2016, https://arxiv.org/abs/1512.03385, with the stride of a
bottleneck on its 3x3 convolution, as torchvision and MONAI have it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadjax.core import lookup
from cadjax.models import (
  conv_cpu,
  folded,
  folded_stem,
  layers,
  pointwise,
)

# depth: (blocks of each stage, whether they are bottlenecks)
DEPTHS = {
  10: ((1, 1, 1, 1), False),
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
}
OUTPUT_STRIDES = (8, 16, 32)
EXPANSION = 4
# How training does what is done in more than one way, with the same parameters
# and, but for rounding, the same results; evaluation is always plain.
#
# stem       folded: convolution, norm, ReLU and pooling on cells of 4x4x4
#            voxels, see `folded_stem`
# stage1     folded: two neighbours along W side by side in the lanes; behind a
#            folded stem alone
# pointwise  moments: the last convolution of a bottleneck and its norm in one,
#            see `pointwise`
WAYS = {
  "stem": ("auto", "folded", "plain"),
  "stage1": ("auto", "folded", "plain"),
  "pointwise": ("auto", "moments", "plain"),
}
# What "auto" is on a platform, and "plain" where nothing stands here: by the
# cycles that the TPU's compiler estimates (cadjax/bench/README.md). On a CPU
# the folded stem takes 2 to 3 times as long; on a GPU it was not measured.
AUTO = {"tpu": {"stem": "folded", "stage1": "folded", "pointwise": "moments"}}
# Above, a bottleneck's moments cost more than the map that they save.
MOST_MOMENTS = 256


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
    fold: neighbours along W that are side by side in the channels of `x`.
    moments: whether the last convolution and its norm, and those of the skip,
      are one, in training (`pointwise`).
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
  fold: int = 1
  moments: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Maps [B, *space, C] to [B, *ceil(space / strides), features].

    With `fold` f the map comes as [B, D, H, W / f, f C], and the result is
    folded by f / strides.
    """
    steps = _bottleneck(self) if self.bottleneck else _basic(self)
    channels = x.shape[-1] // self.fold
    y, fold = x, self.fold
    for i, (features, size, strides, dilation) in enumerate(steps, 1):
      last = i == len(steps)
      y = self._conv_norm(
        y,
        f"{i}",
        train,
        (features, size, strides, dilation),
        fold=fold,
        relu=not last,
        zero_init=last and self.zero_init,
      )
      fold = max(1, fold // strides)
    if self.strides != 1 or channels != features:
      x = self._conv_norm(
        x, "_skip", train, (features, 1, self.strides, 1), fold=self.fold
      )
    if self.moments:
      return pointwise.relu_add(x, y, self.dtype)
    return nn.relu(x + y)

  def _conv_norm(
    self, x, name, train, step, *, fold, relu=False, zero_init=False
  ):
    """A convolution and its norm: conv{name} and norm{name}."""
    features, size, strides, dilation = step
    init = {"scale_init": nn.initializers.zeros} if zero_init else {}
    norm = layers.norm(
      self.norm,
      features,
      train=train,
      relu=relu,
      axis_name=self.axis_name,
      dtype=self.dtype,
      name=f"norm{name}",
      **init,
    )
    channels = x.shape[-1] // fold
    if self.moments and (size, strides, relu) == (1, 1, False):
      (kernel,) = layers.Kernel(
        (1, 1, 1, channels, features), name=f"conv{name}"
      )()
      return norm(
        x,
        lambda x, scale, bias, axis_name: pointwise.conv_norm(
          x, kernel[0, 0, 0], scale, bias, axis_name
        ),
      )
    if fold > 1:
      shape = (*(size,) * 3, channels, features)
      (kernel,) = layers.Kernel(shape, name=f"conv{name}")()
      return norm(folded.conv(x, kernel.astype(x.dtype), strides, channels))
    conv = layers.Conv(
      features,
      size,
      strides,
      dilation,
      dtype=self.dtype,
      mode=self.conv,
      name=f"conv{name}",
    )
    return norm(conv(x))


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
    stem: of `WAYS`, as the next two; "auto" is "plain" here, see `resolve`.
    stage1: how the first stage is trained.
    pointwise: how the ends of bottlenecks are trained.
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
  stem: str = "auto"
  stage1: str = "auto"
  pointwise: str = "auto"

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the logits and the named feature maps of `image`.

    Every map passes through `self.perturb` under its own name, so the
    gradient with respect to the collection "perturbations" is the gradient
    at that map.

    Args:
      image: [B, H, W, C] or [B, D, H, W, C], scaled to about [0, 1]; a folded
        stem takes `folded.to_cells` of it as well.
      train: whether BatchNorm takes the statistics of the batch.

    Returns:
      Logits [B, num_classes] in float32, and the maps "stem" (stride 2),
      "stage1" (4), ... "stage4" (`output_stride`), each [B, *space, C]. In
      training, a folded stem and stage 1 leave theirs out.
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
    if folds := train and self.takes_cells(image.shape):
      x = self._folded_stem(image)
    else:
      x = layers.Conv(
        self.width, 7, 2, dtype=self.dtype, mode=self.conv, name="conv_stem"
      )(image)
      x = self._norm_stem(train)(x)
      x = features["stem"] = self.perturb("stem", x)
      x = layers.max_pool(x, mode=self.conv)
    stage1_folds = folds and self.stage1 == "folded"
    if folds and not stage1_folds:
      x = folded.unfold(x, self.width)
    for stage, blocks in enumerate(_plan(self), 1):
      for i, options in enumerate(blocks, 1):
        if stage1_folds and (stage, i) <= (2, 1):
          options = options | {"fold": 2}  # Block 1 of stage 2 unfolds.
        if train and self._takes_moments(stage):
          options = options | {"moments": True}
        x = self._block(f"stage{stage}_block{i}", options)(x, train)
      if not (stage1_folds and stage == 1):
        x = features[f"stage{stage}"] = self.perturb(f"stage{stage}", x)
    return features

  def _norm_stem(self, train: bool) -> nn.Module:
    return layers.norm(
      self.norm,
      self.width,
      train=train,
      relu=True,
      axis_name=self.axis_name,
      dtype=self.dtype,
      name="norm_stem",
    )

  def _folded_stem(self, image: jax.Array) -> jax.Array:
    """Returns the pooled map, W-folded by 2."""
    cells = image if folded.is_cells(image) else folded.to_cells(image)
    channels = cells.shape[-1] // folded.VOXELS
    shape = (7, 7, 7, channels, self.width)
    (kernel,) = layers.Kernel(shape, name="conv_stem")()
    return self._norm_stem(train=True)(
      cells.astype(self.dtype),
      lambda x, *norm: folded_stem.stem(x, kernel, *norm),
    )

  @nn.nowrap
  def takes_cells(self, shape: Sequence[int]) -> bool:
    """Whether training folds the stem of images [B, D, H, W, C] or cells."""
    cells = len(shape) == 5 and shape[-1] % folded.VOXELS == 0
    return (
      self.stem == "folded"
      and self.ndim == 3
      and self.norm == "batch"
      and (cells or folded.fits(shape))
    )

  @nn.nowrap
  def _takes_moments(self, stage: int) -> bool:
    return (
      self.pointwise == "moments"
      and self.ndim == 3
      and self.norm == "batch"
      and DEPTHS[self.depth][1]
      and self.width * 2 ** (stage - 1) <= MOST_MOMENTS
    )

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
    for name, known in WAYS.items():
      lookup.check_known([getattr(self, name)], known, f"config.model.{name}")

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


def resolve(model: ResNet, platform: str) -> ResNet:
  """Returns a model whose "auto" is what `AUTO` has for a platform.

  Args:
    model: to be trained.
    platform: of its devices: "cpu", "gpu" or "tpu".
  """
  best = AUTO.get(platform, {})
  chosen = {
    name: best.get(name, "plain")
    for name in WAYS
    if getattr(model, name) == "auto"
  }
  return model.clone(**chosen)


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
