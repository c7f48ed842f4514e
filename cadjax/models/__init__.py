"""Models by name.

`model.apply(variables, image, train=...)` gives `(logits, features)`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cadjax.core import lookup
from cadjax.models import layers, resnet, resunet, unet

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STEMS = ("conv7",)
RESNET_DEFAULTS = {
  "ndim": 3,
  "depth": 50,
  "width": 64,
  "num_classes": 2,
  "norm": "batch",
  "output_stride": 32,
  "remat": False,
  "zero_init": False,
  "dtype": "float32",
  "conv": "auto",
  "stem": "conv7",
}
UNET_DEFAULTS = {
  "ndim": 3,
  "features": (32, 64, 128, 256),
  "num_classes": 3,
  "norm": "batch",
  "residual": False,
  "attention": False,
  "deep_supervision": False,
  "upsampling": "linear",
  "remat": False,
  "dtype": "float32",
  "conv": "auto",
}
RESUNET_DEFAULTS = {
  "ndim": 3,
  "depth": 50,
  "width": 64,
  "num_classes": 3,
  "norm": "batch",
  "upsampling": "linear",
  "remat": False,
  "dtype": "float32",
  "conv": "auto",
}


def get_model(
  config: Mapping[str, Any], axis_name: str | None = None
) -> nn.Module:
  """Makes the model that `config` describes.

  Args:
    config: `name`, a key of `MODELS` ("resnet" if there is none), and the
      fields of that model: those of `RESNET_DEFAULTS`, `UNET_DEFAULTS` or
      `RESUNET_DEFAULTS`, which hold their defaults.
    axis_name: the mapped axis over whose devices BatchNorm takes means.

  Returns:
    A Flax module; `apply(variables, image, train=...)` gives the float32
    logits, [B, num_classes] or of a U-Net [B, *space, num_classes], and a
    dict of named feature maps. `init` also makes the collection
    "perturbations", zeros of the size of every map, which callers drop.

  Raises:
    lookup.ConfigError: for an unknown name, field or value.
  """
  options = dict(config)
  make = lookup.look_up(MODELS, options.pop("name", "resnet"), "model")
  return make(options, axis_name)


def _resnet(options: dict[str, Any], axis_name: str | None) -> resnet.ResNet:
  lookup.check_known(options, RESNET_DEFAULTS, "field of config.model")
  options = RESNET_DEFAULTS | options
  lookup.check_known([options.pop("stem")], STEMS, "stem")
  lookup.check_known([options["conv"]], layers.MODES, "config.model.conv")
  options["dtype"] = lookup.look_up(DTYPES, options["dtype"], "dtype")
  resnet.check(
    **{
      key: options[key]
      for key in ("ndim", "depth", "output_stride", "width", "norm")
    }
  )
  return resnet.ResNet(axis_name=axis_name, **options)


def _unet(options: dict[str, Any], axis_name: str | None) -> unet.UNet:
  lookup.check_known(options, UNET_DEFAULTS, "field of config.model")
  options = UNET_DEFAULTS | options
  if isinstance(options["features"], list):  # As in config.json.
    options["features"] = tuple(options["features"])
  lookup.check_known([options["conv"]], layers.MODES, "config.model.conv")
  options["dtype"] = lookup.look_up(DTYPES, options["dtype"], "dtype")
  checked = (
    *("ndim", "features", "num_classes"),
    *("norm", "upsampling", "deep_supervision"),
  )
  unet.check(**{key: options[key] for key in checked})
  return unet.UNet(axis_name=axis_name, **options)


def _resunet(options: dict[str, Any], axis_name: str | None) -> resunet.ResUNet:
  lookup.check_known(options, RESUNET_DEFAULTS, "field of config.model")
  options = RESUNET_DEFAULTS | options
  lookup.check_known([options["conv"]], layers.MODES, "config.model.conv")
  lookup.check_known(
    [options["upsampling"]], unet.UPSAMPLINGS, "config.model.upsampling"
  )
  options["dtype"] = lookup.look_up(DTYPES, options["dtype"], "dtype")
  checked = {key: options[key] for key in ("ndim", "depth", "width", "norm")}
  resnet.check(output_stride=32, **checked)
  return resunet.ResUNet(axis_name=axis_name, **options)


MODELS = {"resnet": _resnet, "unet": _unet, "resunet": _resunet}
