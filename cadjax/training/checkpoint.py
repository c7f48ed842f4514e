"""State to disk and back, by orbax: the latest checkpoints, and the best."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from data_prep.errors import UserError

PyTree = Any


def _manager(path: pathlib.Path, keep: int, **options) -> ocp.CheckpointManager:
  return ocp.CheckpointManager(
    path.absolute(),
    options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    **options,
  )


def _best_manager(workdir: pathlib.Path) -> ocp.CheckpointManager:
  handler = ocp.StandardCheckpointHandler()
  return _manager(workdir / "best", 1, item_handlers=handler)


class Checkpoints:
  """The checkpoints of one workdir.

  `checkpoints/` holds the two newest (train state and `meta`, the loop's own
  bookkeeping), `best/` the variables of the best validation so far. Orbax
  writes in the background to a temporary name and renames: a killed run
  leaves whole checkpoints only.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 2):
    self._latest = _manager(workdir / "checkpoints", keep)
    self._best = _best_manager(workdir)

  def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    """Saves the train state and `meta` (JSON) as the newest checkpoint."""
    # `meta` names the best step: it must not be on disk before its model.
    self._best.wait_until_finished()
    self._latest.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
      ),
    )

  def save_best(self, step: int, variables: PyTree) -> None:
    """Saves the variables of the best validation and drops the ones before.

    A run that was killed after this and before `save` comes here again with
    the same variables; they are on disk already.
    """
    if step not in self._best.all_steps():
      self._best.save(step, args=ocp.args.StandardSave(variables))

  def restore(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
    """Restores the newest checkpoint that can be read.

    Args:
      like: a train state whose shapes and shardings the result gets.

    Returns:
      (state, meta), or None where nothing was saved yet.

    Raises:
      UserError: if there are checkpoints and none of them can be read.
    """
    steps = sorted(self._latest.all_steps(), reverse=True)
    for step in steps:
      try:
        restored = self._latest.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(like)),
            meta=ocp.args.JsonRestore(),
          ),
        )
      except Exception as error:  # Orbax raises many kinds.
        logging.warning(
          "checkpoint %d of %s cannot be read (%s); trying the one before",
          step,
          self._latest.directory,
          str(error).splitlines()[0][:200] if str(error) else type(error),
        )
        continue
      for newer in (s for s in steps if s > step):
        self._latest.delete(newer)
      return restored.state, restored.meta
    if steps:
      raise UserError(
        f"{self._latest.directory}: none of the checkpoints {steps} can be"
        " read; start again in an empty workdir"
      )
    return None

  def close(self) -> None:
    """Waits for what is being written."""
    self._latest.close()
    self._best.close()


def begun(workdir: pathlib.Path) -> bool:
  """Whether a training of this workdir has saved a checkpoint."""
  return any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def best_step(workdir: pathlib.Path) -> int:
  """Returns the step of the best validation.

  Raises:
    UserError: if the workdir holds no best checkpoint.
  """
  steps = [p for p in (workdir / "best").glob("*") if p.name.isdigit()]
  if not steps:
    raise UserError(
      f"{workdir} holds no trained model (no best/ checkpoint); train one with"
      f" python -m cadjax.main --workdir={workdir}"
    )
  return max(int(p.name) for p in steps)


def restore_best(workdir: pathlib.Path) -> tuple[int, PyTree]:
  """Reads the variables of the best validation, as numpy on the host.

  Returns:
    (step, {"params": ..., "batch_stats": ...}).

  Raises:
    UserError: if the workdir holds no readable best checkpoint.
  """
  root, step = workdir / "best", best_step(workdir)
  try:
    with _best_manager(workdir) as manager:
      like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_host()),
        manager.item_metadata(step),
      )
      return step, manager.restore(step, args=ocp.args.StandardRestore(like))
  except Exception as error:  # Orbax raises many kinds.
    reason = str(error).splitlines()[0][:200] if str(error) else type(error)
    raise UserError(
      f"{root / str(step)} cannot be read ({reason}); train again"
    ) from error


def _host() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
