"""A U-Net whose encoder is a ResNet, with the ResNet's parameter names.

What it learns of vessels from masks, a classifier may start from: see
`cadjax.training.warm_start`. The decoder is that of `cadjax.models.unet`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from cadjax.core import lookup
from cadjax.models import layers, resnet, unet

# The map that is skipped to each stage of the decoder, coarsest first, and
# the stage's channels in widths of the network; the last one has the image.
SKIPS = {
  "dec5": ("stage3", 4),
  "dec4": ("stage2", 2),
  "dec3": ("stage1", 1),
  "dec2": ("stem", 1),
  "dec1": (None, 0.5),
}


class ResUNet(resnet.ResNet):
  """A network for segmentation on the maps of a ResNet.

  Attributes:
    num_classes: number of logits per voxel, background included.
    upsampling: see `unet.UNet`; the others are those of `resnet.ResNet`, with
      an `output_stride` of 32: the decoder doubles the resolution five times.
  """

  num_classes: int = 3
  upsampling: str = "linear"

  @property
  def stride(self) -> int:
    """What every size of an image is a multiple of."""
    return self.output_stride

  @nn.compact
  def __call__(
    self, image: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the logits and the named feature maps of `image`.

    Args:
      image: [B, H, W, C] or [B, D, H, W, C], scaled to about [0, 1]; every
        spatial size is a multiple of 32.
      train: whether BatchNorm takes the statistics of the batch.

    Returns:
      Logits [B, *space, num_classes] in float32, and the maps of the ResNet,
      "stem" ... "stage4", and of the decoder, "dec5" (stride 16), "dec4" (8),
      ... "dec1" (1), each [B, *(space / stride), C].

    Raises:
      ValueError: for an image of another rank or of other sizes.
    """
    if any(size % self.stride for size in image.shape[1:-1]):
      raise ValueError(
        f"a U-Net on a ResNet takes sizes that are multiples of {self.stride};"
        f" the image has shape {image.shape}"
      )
    maps = self.trunk(image, train)
    x = maps["stage4"]
    for name, (skipped, widths) in SKIPS.items():
      skip = image if skipped is None else maps[skipped]
      x = self._decoder_stage(name, widths)(skip, x, train)
      x = maps[name] = self.perturb(name, x)
    head = nn.Dense(self.num_classes, kernel_init=layers.HEAD_INIT, name="head")
    return head(x), maps

  @nn.nowrap
  def takes_cells(self, shape: Sequence[int]) -> bool:
    """Never: the decoder takes the map of the stem, which folding skips."""
    del shape
    return False

  @nn.nowrap
  def check(self) -> None:
    """Raises `lookup.ConfigError` where there is no such variant."""
    super().check()
    if self.output_stride != 2 ** len(SKIPS):
      raise lookup.ConfigError(
        f"config.model.output_stride is {self.output_stride}; a resunet's is"
        f" {2 ** len(SKIPS)}"
      )
    lookup.check_known(
      [self.upsampling], unet.UPSAMPLINGS, "config.model.upsampling"
    )

  def _decoder_stage(self, name: str, widths: float) -> nn.Module:
    kind: Any = unet.Stage
    if self.remat:
      kind = nn.remat(unet.Stage, static_argnums=(3,))
    return kind(
      features=max(1, int(widths * self.width)),
      norm=self.norm,
      upsampling=self.upsampling,
      axis_name=self.axis_name,
      dtype=self.dtype,
      conv=self.conv,
      name=f"{name}_block",
    )
