"""U-Net in 2D and 3D with named feature maps.

Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, and Cicek et al.
2016, https://arxiv.org/abs/1606.06650, with strided convolutions instead of
pooling and without transposed ones. Every map keeps its place: cell o of a
map of stride s lies on voxel s o of the image, on the way down and up.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadjax.core import lookup
from cadjax.models import conv_cpu, layers

UPSAMPLINGS = ("linear", "shuffle")
MAX_HEADS = 3
# One digit, so that no map's name is the beginning of another's.
MAX_LEVELS = 9


class Stage(nn.Module):
  """Two 3x3 convolutions, in the decoder after upsampling a coarser map.

  Attributes:
    features: channels out.
    strides: step of the first convolution in voxels.
    norm: kind of normalisation, see `layers.norm`.
    residual: whether a projection of the input is added before the last ReLU.
    attention: whether a `Gate` weighs the map that is skipped to the decoder.
    upsampling: one of `UPSAMPLINGS`.
    axis_name: see `layers.norm`.
    dtype: type to compute in.
    conv: the mode of `layers.conv`.
  """

  features: int
  strides: int = 1
  norm: str = "batch"
  residual: bool = False
  attention: bool = False
  upsampling: str = "linear"
  axis_name: str | None = None
  dtype: Any = jnp.float32
  conv: str = "auto"

  @nn.compact
  def __call__(
    self, x: jax.Array, coarse: jax.Array | None, train: bool
  ) -> jax.Array:
    """Convolves `x`, in the decoder together with the map below it.

    Args:
      x: [B, *space, C].
      coarse: None, or a map [B, *(space / 2), C'].
      train: whether BatchNorm takes the statistics of the batch.

    Returns:
      [B, *ceil(space / strides), features].
    """
    norm = partial(
      layers.norm,
      self.norm,
      train=train,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )
    conv = partial(layers.Conv, dtype=self.dtype, mode=self.conv)
    maps = [x]
    if coarse is not None:
      if self.attention:
        maps = [Gate(norm, conv, name="gate")(x, coarse)]
      maps.append(self._upsample(conv, coarse))
    y = conv(self.features, 3, self.strides, name="conv1")(*maps)
    y = norm(self.features, relu=True, name="norm1")(y)
    y = conv(self.features, 3, name="conv2")(y)
    y = norm(self.features, relu=not self.residual, name="norm2")(y)
    if not self.residual:
      return y
    x = conv(self.features, 1, self.strides, name="conv_skip")(*maps)
    return nn.relu(norm(self.features, name="norm_skip")(x) + y)

  def _upsample(self, conv, coarse):
    """To the channels and the resolution of this stage.

    A pointwise convolution and linear interpolation commute; first, it has
    an eighth of the voxels and leaves half of the channels to interpolate.
    """
    if self.upsampling == "linear":
      return layers.upsample2(conv(self.features, 1, name="up")(coarse))
    places = 2 ** (coarse.ndim - 2)
    y = conv(self.features * places, 1, name="up")(coarse)
    return layers.depth_to_space(y)


class Gate(nn.Module):
  """An additive attention gate: weighs a map by what a coarser one knows.

  Oktay et al. 2018, https://arxiv.org/abs/1804.03999, equations 1 and 2. The
  weights are computed on the grid of the coarser map and interpolated.

  Attributes:
    norm: makes a normalisation layer.
    conv: makes a convolution.
  """

  norm: partial
  conv: partial

  @nn.compact
  def __call__(self, x: jax.Array, coarse: jax.Array) -> jax.Array:
    """Maps [B, *space, C] and [B, *(space / 2), C'] to [B, *space, C]."""
    inside = max(1, x.shape[-1] // 2)
    # With stride 2 the kernel sees the voxels on which the cells lie.
    a = self.conv(inside, 1, 2, name="conv_skip")(x)
    a = a + self.conv(inside, 1, name="conv_coarse")(coarse)
    a = self.norm(inside, relu=True, name="norm")(a)
    weight = nn.Dense(1, kernel_init=layers.HEAD_INIT, name="weight")(a)
    return x * layers.upsample2(nn.sigmoid(weight).astype(x.dtype))


class UNet(nn.Module):
  """A network for segmentation that also returns its feature maps.

  Attributes:
    ndim: 2 or 3 spatial axes.
    features: channels of each level, finest first; the first one has the
      resolution of the image, each further one half of that before it.
    num_classes: number of logits per voxel, background included.
    norm: kind of normalisation, see `layers.norm`.
    residual: whether each stage is a residual block.
    attention: whether attention gates weigh the skipped maps.
    deep_supervision: whether training gives logits of coarser decoder maps,
      too: of up to three resolutions, but not of the coarsest two levels.
    upsampling: "linear" interpolates; "shuffle" makes the voxels 2 o and
      2 o + 1 from channels of cell o (depth to space).
    remat: whether each stage's activations are recomputed in the backward
      pass, which takes about a third more time and much less memory.
    axis_name: the mapped axis over whose devices BatchNorm takes means.
    dtype: type to compute in; parameters, statistics and logits are float32.
    conv: the mode of `layers.conv`: "auto", "exact" or "lax".
  """

  ndim: int = 3
  features: tuple[int, ...] = (32, 64, 128, 256)
  num_classes: int = 3
  norm: str = "batch"
  residual: bool = False
  attention: bool = False
  deep_supervision: bool = False
  upsampling: str = "linear"
  remat: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32
  conv: str = "auto"

  @property
  def stride(self) -> int:
    """What every size of an image is a multiple of."""
    return 2 ** (len(self.features) - 1)

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool
  ) -> tuple[jax.Array | tuple[jax.Array, ...], dict[str, jax.Array]]:
    """Returns the logits and the named feature maps of `image`.

    Every map passes through `self.perturb` under its own name, so the
    gradient with respect to the collection "perturbations" is the gradient
    at that map.

    Args:
      image: [B, H, W, C] or [B, D, H, W, C], scaled to about [0, 1]; every
        spatial size is a multiple of the stride of the bottleneck.
      train: whether BatchNorm takes the statistics of the batch.

    Returns:
      Logits [B, *space, num_classes] in float32; with `deep_supervision` and
      `train` a tuple of those at strides 1, 2 and 4 that there are. And the
      maps "enc1" (stride 1), "enc2" (2), ... "bottleneck", ... "dec2",
      "dec1", each [B, *(space / stride), C].

    Raises:
      ValueError: for an image of another rank or of other sizes.
    """
    self._check_image(image.shape)
    depth = len(self.features)
    maps = {}
    x = image
    for level in range(1, depth + 1):
      name = f"enc{level}" if level < depth else "bottleneck"
      x = self._stage(name, level, 1 if level == 1 else 2)(x, None, train)
      x = maps[name] = self.perturb(name, x)
    for level in range(depth - 1, 0, -1):
      name = f"dec{level}"
      x = self._stage(name, level)(maps[f"enc{level}"], x, train)
      x = maps[name] = self.perturb(name, x)
    supervised = self.deep_supervision and train
    # Parameters are made with train=False.
    heads = num_heads(self) if supervised or self.is_initializing() else 1
    logits = tuple(
      nn.Dense(
        self.num_classes,
        kernel_init=layers.HEAD_INIT,
        name="head" if level == 1 else f"head{level}",
      )(maps[f"dec{level}"])
      for level in range(1, heads + 1)
    )
    return logits if supervised else logits[0], maps

  def _stage(self, name: str, level: int, strides: int = 1) -> nn.Module:
    kind = nn.remat(Stage, static_argnums=(3,)) if self.remat else Stage
    return kind(
      features=self.features[level - 1],
      strides=strides,
      norm=self.norm,
      residual=self.residual,
      attention=self.attention,
      upsampling=self.upsampling,
      axis_name=self.axis_name,
      dtype=self.dtype,
      conv=self.conv,
      name=f"{name}_block",
    )

  @nn.nowrap
  def check(self) -> None:
    """Raises `lookup.ConfigError` where there is no such variant."""
    if self.ndim not in conv_cpu.LAYOUTS:
      raise lookup.ConfigError(
        f"config.model.ndim is {self.ndim!r}; it must be one of 2, 3"
      )
    features = self.features
    numbers = isinstance(features, tuple) and all(
      isinstance(each, int) and each >= 1 for each in features
    )
    if not numbers or not 2 <= len(features) <= MAX_LEVELS:
      raise lookup.ConfigError(
        f"config.model.features is {features!r}; it must be 2 to {MAX_LEVELS}"
        " numbers of channels, one for each level, finest first"
      )
    if self.num_classes < 2:
      raise lookup.ConfigError(
        f"config.model.num_classes is {self.num_classes}; it must be >= 2, the"
        " background included"
      )
    if self.deep_supervision and len(features) < 4:
      raise lookup.ConfigError(
        f"config.model.deep_supervision takes 4 levels or more; {features} has"
        f" {len(features)}, and the coarsest two have no logits of their own;"
        " set it to False"
      )
    lookup.look_up(layers.NORMS, self.norm, "norm")
    lookup.check_known(
      [self.upsampling], UPSAMPLINGS, "config.model.upsampling"
    )

  def _check_image(self, shape: Sequence[int]) -> None:
    if len(shape) != self.ndim + 2:
      raise ValueError(
        f"a {self.ndim}D model takes {self.ndim + 2} axes (batch, space,"
        f" channels); the image has shape {shape}"
      )
    if any(size % self.stride for size in shape[1:-1]):
      raise ValueError(
        f"a U-Net of {len(self.features)} levels takes sizes that are"
        f" multiples of {self.stride}; the image has shape {shape}"
      )


def num_heads(model: UNet) -> int:
  """How many resolutions have logits when training."""
  if not model.deep_supervision:
    return 1
  return min(MAX_HEADS, len(model.features) - 2)
