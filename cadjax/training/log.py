"""Where a run writes its numbers: metrics.jsonl and TensorBoard."""

import json
import pathlib

import jax
import numpy as np
import tensorboardX

from cadjax.core.parallel import Parallel
from cadjax.models import folded


class RunLog:
  """Scalars and pictures of one run.

  A resumed run drops what was written after the step it resumes at, so that
  the log describes one run.

  Args:
    workdir: gets metrics.jsonl and tensorboard/.
    step: the step at which the run starts or resumes.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    path = workdir / "metrics.jsonl"
    kept = _lines_until(path, step) if path.exists() else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    self._file = path.open("a")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=step + 1
    )

  def scalars(self, step: int, prefix: str, values: dict[str, float]) -> None:
    """Writes one line and its curves; undefined values are null."""
    named = {f"{prefix}/{name}": value for name, value in values.items()}
    strict = {k: v if np.isfinite(v) else None for k, v in named.items()}
    self._file.write(json.dumps({"step": step, **strict}) + "\n")
    self._file.flush()
    for name, value in named.items():
      self._board.add_scalar(name, value, step)

  def pictures(self, batch: dict, prepare, devices: Parallel) -> None:
    """Shows what the model sees: the middle slices of the first batch.

    Args:
      batch: on the devices, as the train step gets it.
      prepare: of `steps.make_prepare`, augmentation included.
      devices: where the batch is.
    """
    few = devices.first_examples(batch, 2)
    image, _, _ = jax.jit(prepare)(jax.random.key(0), few)
    image = np.asarray(image)
    if folded.is_cells(image):
      image = folded.from_cells(image)
    for i, x in enumerate(image[:4, ..., 0]):
      planes = [x] if x.ndim == 2 else _planes(x)
      for name, plane in zip(
        ("axial", "coronal", "sagittal"), planes, strict=False
      ):
        self._board.add_image(f"input/{i}_{name}", plane[None], 0)

  def close(self) -> None:
    """Flushes everything to disk."""
    self._file.close()
    self._board.close()


def _planes(volume: np.ndarray) -> list[np.ndarray]:
  """The three middle planes of [D, H, W], superior at the top."""
  d, h, w = (n // 2 for n in volume.shape)
  return [volume[d], volume[::-1, h], volume[::-1, :, w]]


def _lines_until(path: pathlib.Path, step: int) -> list[str]:
  """The whole lines of metrics.jsonl whose step is not after `step`."""
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line)
    except json.JSONDecodeError:
      break  # A killed run can leave half a line, and only as the last one.
  return kept
