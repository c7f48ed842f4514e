"""MONAI's networks and the way from their weights to ours; needs torch."""

import jax
import numpy as np
import pytest
import torch

CLASSES = 2


@pytest.fixture(scope="module")
def monai_nets():
  import warnings

  with warnings.catch_warnings():
    # MONAI's own imports warn of deprecated names in other packages.
    warnings.simplefilter("ignore")
    return pytest.importorskip("monai.networks.nets")


def make_torch(nets, ndim, depth):
  """MONAI's network with norms and statistics away from 0 and 1."""
  torch.manual_seed(0)
  net = getattr(nets, f"resnet{depth}")(
    spatial_dims=ndim,
    n_input_channels=1,
    num_classes=CLASSES,
    conv1_t_stride=2,
    bias_downsample=False,
  )
  shake_norms(net)
  return net


@torch.no_grad()
def shake_norms(net):
  """Draws the parameters and statistics of all norms in place."""
  for module in net.modules():
    if getattr(module, "affine", False):
      module.weight.uniform_(0.5, 1.0)
      module.bias.uniform_(-0.2, 0.2)
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
      module.running_mean.uniform_(-0.2, 0.2)
      module.running_var.uniform_(0.5, 1.5)


TORCH_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}


def torch_name(path):
  """The name in MONAI of a parameter in cadjax: ("conv_stem", "kernel")."""
  *block, layer, leaf = path
  if layer == "head":
    prefix = "fc"
  elif layer.endswith("_stem"):
    prefix = {"conv_stem": "conv1", "norm_stem": "bn1"}[layer]
  else:
    stage, number = block[0].removeprefix("stage").split("_block")
    names = {"conv_skip": "downsample.0", "norm_skip": "downsample.1"}
    inner = names.get(layer, layer.replace("norm", "bn"))
    prefix = f"layer{stage}.{int(number) - 1}.{inner}"
  return f"{prefix}.{TORCH_LEAVES.get(leaf, leaf)}"


def torch_unet_name(path):
  """The name in `bench.unet_torch` of a parameter of a U-Net in cadjax."""
  *parts, leaf = path
  return ".".join(["parts", *parts, TORCH_LEAVES.get(leaf, leaf)])


def to_flax(tensors, like, name=torch_name):
  """Torch tensors by name -> a tree of the shapes of `like`."""

  def convert(path, leaf):
    keys = [each.key for each in path]
    # A copy: torch updates its running statistics in place.
    value = tensors[name(keys)].detach().numpy().copy()
    if keys[-1] == "kernel":  # [out, in, *size] -> [*size, in, out]
      value = np.moveaxis(value, (0, 1), (-1, -2))
      if keys[-2] == "up" and value.shape[0] == 2:
        # Transposed, [*size, out, in]: each place a block of channels.
        value = np.moveaxis(value, -1, 0)
        value = value.reshape(*(1,) * (leaf.ndim - 2), len(value), -1)
      # What is a dense layer here is a convolution of size 1 there.
      value = value.squeeze(tuple(range(value.ndim - leaf.ndim)))
    assert value.shape == leaf.shape, keys
    return value

  return jax.tree_util.tree_map_with_path(convert, like)
