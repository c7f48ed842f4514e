"""Models by name.

`model.apply(variables, image, train=...)` gives `(logits, features)`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cadjax.core import lookup
from cadjax.models import layers, resnet, resunet, unet

MODELS = {
  "resnet": resnet.ResNet,
  "unet": unet.UNet,
  "resunet": resunet.ResUNet,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Fields of a module that no config sets: Flax's own, and the devices' axis.
NOT_IN_CONFIG = ("parent", "name", "axis_name")


def get_model(
  config: Mapping[str, Any],
  axis_name: str | None = None,
  platform: str | None = None,
) -> nn.Module:
  """Makes the model that `config` describes.

  Args:
    config: `name`, a key of `MODELS` ("resnet" if there is none), and fields
      of that class, which has their defaults; `dtype` by its name, a key of
      `DTYPES`.
    axis_name: the mapped axis over whose devices BatchNorm takes means.
    platform: "cpu", "gpu" or "tpu": of the devices that train it, for what is
      "auto"; None for a model that is not to be trained.

  Returns:
    A Flax module; `apply(variables, image, train=...)` gives the float32
    logits, [B, num_classes] or of a U-Net [B, *space, num_classes], and a
    dict of named feature maps. `init` also makes the collection
    "perturbations", zeros of the size of every map, which callers drop.

  Raises:
    lookup.ConfigError: for an unknown name, field or value.
  """
  options = dict(config)
  kind = lookup.look_up(MODELS, options.pop("name", "resnet"), "model")
  known = {field.name for field in dataclasses.fields(kind)}
  lookup.check_known(
    options, known.difference(NOT_IN_CONFIG), "field of config.model"
  )
  for name, value in options.items():
    if isinstance(value, list):  # As in config.json; a module is hashable.
      options[name] = tuple(value)
  if "dtype" in options:
    options["dtype"] = lookup.look_up(DTYPES, options["dtype"], "dtype")
  model = kind(axis_name=axis_name, **options)
  lookup.check_known([model.conv], layers.MODES, "config.model.conv")
  model.check()
  if platform is not None and isinstance(model, resnet.ResNet):
    model = resnet.resolve(model, platform)
  return model
