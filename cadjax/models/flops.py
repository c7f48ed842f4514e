"""The work that a model is, counted from the shapes of its layers.

A multiplication with an addition counts as two operations. Only convolutions
and dense layers count: norms, activations and pooling are a few percent. Taps
of a kernel that fall on the padding do not count, as in XLA's own analysis; on
the small maps of a deep stage they are most of the taps.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadjax.models import layers

HEAD = "head"


@dataclasses.dataclass(frozen=True)
class Layer:
  """One convolution or dense layer in one forward pass.

  Attributes:
    name: its path in the parameter tree, "stage1_block1/conv2".
    stage: the first feature map that needs it, or "head".
    flops: of the forward pass.
    bytes: input, kernel and output, each moved once.
    sees_image: whether its input is the image, which needs no gradient.
  """

  name: str
  stage: str
  flops: int
  bytes: int
  sees_image: bool


def count(model: nn.Module, image_shape: Sequence[int]) -> list[Layer]:
  """Counts the layers of a model without running it.

  Args:
    model: of `models.get_model`.
    image_shape: [B, (D,) H, W, C].

  Returns:
    the layers in the order of the forward pass.
  """
  image = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32)
  calls: list[Layer] = []
  # What is computed again in the backward pass is not the network's work.
  model = model.clone(remat=False)

  def forward(image):
    def watch(next_fn, args, kwargs, context):
      y = next_fn(*args, **kwargs)
      module = context.module
      if context.method_name == "__call__" and isinstance(
        module, layers.Conv | nn.Dense
      ):
        calls.append(_layer(module, args, y, args[0] is image))
      return y

    with nn.intercept_methods(watch):
      (_, features), _ = model.init_with_output(
        jax.random.key(0), image, train=False
      )
    return features

  features = jax.eval_shape(forward, image)
  return [
    dataclasses.replace(layer, stage=_stage(layer.name, list(features)))
    for layer in calls
  ]


def step_flops(counted: Sequence[Layer], *, train: bool) -> int:
  """Sums the forward pass; three times that for training.

  The gradients of the input and of the kernel cost a forward pass each, and
  nobody asks for the gradient of the image.
  """
  passes = 3 if train else 1
  return sum(
    layer.flops * (passes - (train and layer.sees_image)) for layer in counted
  )


def by_stage(counted: Sequence[Layer]) -> dict[str, dict[str, int]]:
  """Sums flops and bytes of the forward pass by stage, in its order."""
  stages: dict[str, dict[str, int]] = {}
  for layer in counted:
    total = stages.setdefault(layer.stage, {"flops": 0, "bytes": 0})
    total["flops"] += layer.flops
    total["bytes"] += layer.bytes
  return stages


def _layer(module: nn.Module, maps, y, sees_image: bool) -> Layer:
  x, features = maps[0], y.shape[-1]
  channels = sum(each.shape[-1] for each in maps)
  if isinstance(module, nn.Dense):
    taps = math.prod(x.shape[:-1])
    kernel = channels * features
  else:
    size = module.size
    taps = x.shape[0] * math.prod(
      _valid_taps(n, out, size, module.strides, module.dilation)
      for n, out in zip(x.shape[1:-1], y.shape[1:-1], strict=True)
    )
    kernel = size ** (x.ndim - 2) * channels * features
  read = sum(each.size for each in maps)
  moved = (read + y.size + kernel) * y.dtype.itemsize
  work = 2 * taps * channels * features
  return Layer("/".join(module.path), "", work, moved, sees_image)


def _valid_taps(
  size_in: int, size_out: int, kernel: int, stride: int, dilation: int
) -> int:
  """Counts, along one axis, the taps that meet the input."""
  start = np.arange(size_out)[:, None] * stride - dilation * (kernel - 1) // 2
  at = start + dilation * np.arange(kernel)
  return int(((at >= 0) & (at < size_in)).sum())


def _stage(name: str, features: Sequence[str]) -> str:
  """Finds the feature map whose name is in that of the top-level module."""
  top = name.partition("/")[0]
  return next((stage for stage in features if stage in top), HEAD)
