"""What computes here, and the precision and batch that suit it.

  python -m cadjax.notebook.devices

prints kind and count of the devices as JSON. A notebook asks by `find`, in a
process of its own: a kernel that once held an accelerator would keep it, or
most of its memory, from the programs that it starts.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence

import jax

# Of the volumes that `Row.volumes` counts, and of a step of every classifier's
# config: a device that takes fewer at once gets there by accumulation.
PAPER_SHAPE = (256, 128, 128)
BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True)
class DeviceRow:
  """What suits one kind of device.

  Attributes:
    kind: a word of what jax calls it.
    dtype: to compute in.
    volumes: of `PAPER_SHAPE`, trained at a time by `configs/resnet3d.py`.
    reason: why.
  """

  kind: str
  dtype: str
  volumes: int
  reason: str


# Unless noted otherwise: 8 took 5.7 GB on an H200, and twice that without
# bfloat16; of a GPU's memory jax takes three quarters.
ROWS = (
  DeviceRow(
    "T4", "float32", 4, "no bfloat16 units; 8 would need 11 of its 15 GB"
  ),
  DeviceRow(
    "V100", "float32", 4, "no bfloat16 units; 8 would need 11 of its 16 GB"
  ),
  DeviceRow("L4", "bfloat16", 8, "8 need 6 of its 22 GB"),
  DeviceRow("A100", "bfloat16", 8, "8 need 6 of its 40 or 80 GB"),
  DeviceRow("H100", "bfloat16", 8, "8 need 6 of its 80 GB"),
  DeviceRow("H200", "bfloat16", 8, "8 took 5.7 of its 141 GB"),
  DeviceRow("RTX PRO 6000", "bfloat16", 8, "8 need 6 of its 96 GB"),
  DeviceRow(
    "TPU v5 lite", "bfloat16", 8, "8 need 8 of its 16 GB, says its compiler"
  ),
  DeviceRow("TPU v6 lite", "bfloat16", 8, "8 need 8 of its 32 GB, as on a v5e"),
  DeviceRow("TPU v2", "bfloat16", 1, "8 GB for each of its cores"),
  DeviceRow("cpu", "float32", 2, "2 took 5.8 GB and 8 more than 15"),
)
UNKNOWN = DeviceRow(
  "", "float32", 1, "not in the table of cadjax.notebook.devices: careful"
)


@dataclasses.dataclass(frozen=True)
class Device:
  """The devices of one process and what suits them.

  Attributes:
    kind: as jax calls it.
    count: how many.
    row: what suits one of them.
  """

  kind: str
  count: int
  row: DeviceRow

  @property
  def is_cpu(self) -> bool:
    """Whether there is no accelerator."""
    return self.kind == "cpu"

  def batch_size(self, shape: Sequence[int]) -> int:
    """Returns how many volumes to train on at once, on all devices together.

    Args:
      shape: of a volume, [D, H, W].

    Returns:
      `BATCH_SIZE` or, where so many do not fit, less: a multiple of the
      number of devices.
    """
    one = self.row.volumes * math.prod(PAPER_SHAPE) // math.prod(shape)
    return self.count * max(1, min(one, BATCH_SIZE // self.count))

  def flags(self, shape: Sequence[int] | None = None) -> str:
    """Returns flags of `cadjax.main` for these devices.

    Args:
      shape: of a classifier's volumes, [D, H, W]: gives the batch, too. Where
        less than `BATCH_SIZE` fits, gradients are accumulated.
    """
    # Under pmap, orbax warns of every array with Colab's jax, 0.7.
    flags = f"--config.model.dtype={self.row.dtype} --config.parallel=mesh"
    if shape is None:
      return flags
    batch = self.batch_size(shape)
    return (
      f"{flags} --config.data.batch_size={batch}"
      f" --config.data.eval_batch_size={batch}"
      f" --config.optimizer.accumulate={max(1, BATCH_SIZE // batch)}"
    )

  def __str__(self) -> str:
    size = "x".join(map(str, PAPER_SHAPE))
    return (
      f"{self.count} x {self.kind}: {self.row.dtype}, batches of"
      f" {self.batch_size(PAPER_SHAPE)} volumes of {size} ({self.row.reason})"
    )


def suggest(kind: str, count: int = 1) -> Device:
  """Looks up what suits a kind of device.

  Args:
    kind: `jax.Device.device_kind`.
    count: how many there are.
  """
  for row in ROWS:
    if re.search(rf"\b{re.escape(row.kind)}\b", kind):
      return Device(kind, count, row)
  return Device(kind, count, UNKNOWN)


def find() -> Device:
  """Asks another process for the devices and looks up what suits them.

  Raises:
    RuntimeError: jax cannot use them; the message says why.
  """
  command = [sys.executable, "-m", "cadjax.notebook.devices"]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"jax finds no device: {done.stderr[-2000:]}")
  return suggest(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
  """Prints the devices."""
  devices = jax.devices()
  found = {"kind": devices[0].device_kind, "count": len(devices)}
  print(json.dumps(found))


if __name__ == "__main__":
  main()
