"""What several tests share: a tiny segmenter, and variables for any model."""

import functools

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def enable_x64():
  """Computes in float64 within a `with`; jax 0.7 has it in another place."""
  if hasattr(jax, "enable_x64"):
    return jax.enable_x64(True)
  return jax.experimental.enable_x64(True)


def draw_variables(model, ndim, seed=0):
  """Variables by numpy; nothing sits at 0 or 1, nothing is compiled."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, normal = path[-1].key, rng.standard_normal(leaf.shape)
    fan_in = max(leaf.size // leaf.shape[-1], 1)
    drawn = {
      "kernel": normal * (2 / fan_in) ** 0.5,
      "scale": 0.7 + 0.2 * normal,
      "bias": 0.3 * normal,
      "mean": 0.3 * normal,
      "var": np.exp(0.3 * normal),
    }
    return drawn[name].astype(np.float32)

  x = jnp.zeros((1, *(16,) * ndim, 1))
  like = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  like = {k: v for k, v in like.items() if k != "perturbations"}
  return dict(jax.tree_util.tree_map_with_path(draw, like))


def on_two_devices(norm, x, params, dy):
  """Value, moments and gradients of half a batch each, put together again.

  Args:
    norm: (x, *params, axis_name) -> (y, mean, variance).
    x: [B, ...].
    params: the others.
    dy: the gradient of y.
  """

  def halves(a):
    return a.reshape(2, -1, *a.shape[1:])

  def one(x, dy):
    (y, *moments), pull = jax.vjp(lambda *args: norm(*args, "data"), x, *params)
    none = jnp.zeros_like(moments[0])
    dx, *rest = pull((dy, none, none))
    return y, moments, dx, jax.lax.psum(rest, "data")

  mapped = jax.vmap(one, axis_name="data", out_axes=(0, None, 0, None))
  y, moments, dx, rest = mapped(halves(x), halves(dy))
  return y.reshape(dy.shape), *moments, dx.reshape(x.shape), *rest


class Fcn(nn.Module):
  """A small segmenter: strides 1 and 2, back to the image, three classes."""

  ndim: int = 3
  dtype: type = jnp.float32
  smooth: bool = False

  @nn.compact
  def __call__(self, x, *, train):
    act = nn.softplus if self.smooth else nn.relu
    conv = functools.partial(
      nn.Conv, kernel_size=(3,) * self.ndim, dtype=self.dtype, padding="SAME"
    )
    maps = {}
    x = maps["enc1"] = self.perturb("enc1", act(conv(4, name="a")(x)))
    # Padded as everywhere here: cell o of stride 2 lies on voxel 2 o.
    y = conv(6, strides=2, padding=1, name="b")(x)
    y = maps["bottleneck"] = self.perturb("bottleneck", act(y))
    for axis in range(1, self.ndim + 1):
      y = jnp.repeat(y, 2, axis)
    y = act(conv(4, name="c")(jnp.concatenate([x, y], -1)))
    y = maps["dec1"] = self.perturb("dec1", y)
    return nn.Dense(3, name="head")(y), maps
