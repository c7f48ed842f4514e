"""State to disk and back, by orbax: the latest checkpoints, and the best.

Orbax hands out weights with flipped bits as if nothing had happened, so every
checkpoint holds the checksums of its files, which each load compares.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from data_prep import checksums, streams
from data_prep.errors import UserError, one_line

PyTree = Any
# Orbax writes the arrays and then merges the files into others.
_WRITTEN_TIMES = 2
_SPARE_BYTES = 1 << 20


class _Arrays(ocp.StandardCheckpointHandler):
  """Writes checksums with the arrays, before orbax renames their folder."""

  def finalize(self, directory) -> None:
    super().finalize(directory)
    checksums.write(pathlib.Path(directory))


class _Json(ocp.JsonCheckpointHandler):
  """The same of a JSON value."""

  def finalize(self, directory) -> None:
    super().finalize(directory)
    checksums.write(pathlib.Path(directory))


def _manager(
  path: pathlib.Path, keep: int, *, arrays: str, values: str | None = None
) -> ocp.CheckpointManager:
  """Makes the manager of a folder of checkpoints.

  Args:
    path: the folder.
    keep: how many checkpoints stay.
    arrays: the item with the arrays.
    values: the item with JSON, if there is one.
  """
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  handler = _Arrays()
  registry.add(arrays, ocp.args.StandardSave, handler)
  registry.add(arrays, ocp.args.StandardRestore, handler)
  if values is not None:
    handler = _Json()
    registry.add(values, ocp.args.JsonSave, handler)
    registry.add(values, ocp.args.JsonRestore, handler)
  try:
    return ocp.CheckpointManager(
      path.absolute(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
      handler_registry=registry,
    )
  except OSError:  # Of the system, which says so itself.
    raise
  except Exception as error:  # Of orbax's own files, which it reads here.
    raise UserError(
      f"{path} cannot be used ({_reason(error)}); restore it from a copy, or"
      " start again in an empty workdir"
    ) from error


def _best_manager(workdir: pathlib.Path) -> ocp.CheckpointManager:
  # The name that orbax gives to the only item of a checkpoint.
  return _manager(workdir / "best", 1, arrays="default")


def check_workdir(workdir: pathlib.Path) -> bool:
  """Checks the files that describe a workdir.

  Returns:
    whether they have checksums, and so its checkpoints must have some, too;
    what older versions wrote has none.

  Raises:
    UserError: a file has changed since it was written, or one of the workdir
      or its checkpoints is neither a file nor a folder.
  """
  check_kinds(workdir)
  try:
    return checksums.check(workdir) is not None
  except UserError as error:
    raise UserError(
      f"{error}; restore it from a copy, or train again in another workdir (or"
      f" delete {workdir / checksums.NAME} if you changed the file yourself)"
    ) from error


def check_kinds(workdir: pathlib.Path) -> None:
  """Raises `UserError` for pipes and devices, which opening could wait for.

  And for a file where a folder of checkpoints should be, which would look
  like a workdir without any.
  """
  folders = [workdir / name for name in ("checkpoints", "best")]
  streams.check_kinds(*folders, *workdir.glob("*.json"))
  steps = [path for x in folders for path in x.glob("*") if path.name.isdigit()]
  for folder in (*folders, *steps):
    if folder.exists() and not folder.is_dir():
      raise UserError(f"{folder} is a file, where a folder should be")


def _check(folder: pathlib.Path, sealed: bool) -> None:
  """Raises `UserError` if a checkpoint is not what was written.

  Args:
    folder: of the checkpoint; its items are the folders in it.
    sealed: whether each must have checksums.
  """
  for item in sorted(path for path in folder.iterdir() if path.is_dir()):
    if checksums.check(item) is not None:
      continue
    if sealed:
      raise UserError(f"{item / checksums.NAME} is missing")
    logging.warning(
      "%s is of an older version, without checksums: whether it has changed"
      " since it was written cannot be told",
      item,
    )


class Checkpoints:
  """The checkpoints of one workdir.

  `checkpoints/` holds the two newest (train state and `meta`, the loop's own
  bookkeeping), `best/` the variables of the best validation so far. Orbax
  writes in the background to a temporary name and renames: a killed run
  leaves whole checkpoints only, with their checksums.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 2):
    self._workdir = workdir
    self._latest = _manager(
      workdir / "checkpoints", keep, arrays="state", values="meta"
    )
    self._best = _best_manager(workdir)

  def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    """Saves the train state and `meta` (JSON) as the newest checkpoint.

    Raises:
      UserError: it, or the one before, cannot be written.
    """
    with self._writing():
      # `meta` names the best step: it must not be on disk before its model.
      self._best.wait_until_finished()
      self._latest.wait_until_finished()
      self.check_space(state)
      self._latest.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        ),
      )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except UserError:
      raise
    except Exception as error:  # Orbax raises many kinds.
      raise UserError(
        f"{self._workdir}: a checkpoint cannot be written ({_reason(error)});"
        " the same command goes on from the last one that was"
      ) from error

  def check_space(self, tree: PyTree) -> None:
    """Raises `UserError` before a disk is full, which orbax reports in pages.

    Args:
      tree: of arrays, what is to be saved.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    needed = _WRITTEN_TIMES * needed + _SPARE_BYTES
    free = shutil.disk_usage(self._workdir).free
    if free < needed:
      raise UserError(
        f"{self._workdir}: a checkpoint needs {needed / 1e6:.0f} MB, and the"
        f" disk has {free / 1e6:.0f} MB left; free some space, and the same"
        " command goes on from the last checkpoint"
      )

  def save_best(self, step: int, variables: PyTree) -> None:
    """Saves the variables of the best validation and drops the ones before.

    A run that was killed after this and before `save` comes here again with
    the same variables; they are on disk already, and stay if they are whole.

    Raises:
      UserError: they cannot be written.
    """
    with self._writing():
      self._save_best(step, variables)

  def _save_best(self, step: int, variables: PyTree) -> None:
    self._latest.wait_until_finished()
    self._best.wait_until_finished()
    if step in self._best.all_steps():
      try:
        _check(self._workdir / "best" / str(step), sealed=True)
        return
      except UserError:
        self._best.delete(step)
    self.check_space(variables)
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
    sealed = check_workdir(self._workdir)
    folder = self._workdir / "checkpoints"
    steps = sorted(self._latest.all_steps(), reverse=True)
    for step in steps:
      try:
        _check(folder / str(step), sealed)
        restored = self._latest.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_abstract(like)),
            meta=ocp.args.JsonRestore(),
          ),
        )
      except Exception as error:  # Orbax raises many kinds.
        logging.warning(
          "checkpoint %d of %s cannot be used (%s); trying the one before",
          step,
          folder,
          _reason(error),
        )
        continue
      self._check_best(restored.meta.get("best_step"), sealed)
      for newer in (s for s in steps if s > step):
        self._latest.delete(newer)
      return restored.state, restored.meta
    if steps:
      raise UserError(
        f"{folder}: none of the checkpoints {steps} can be read; restore them"
        " from a copy, or start again in an empty workdir"
      )
    return None

  def _check_best(self, step: int | None, sealed: bool) -> None:
    """Raises `UserError` unless the best model of a checkpoint is whole.

    A newer one than the checkpoint knows is written again when training gets
    there, see `save_best`.
    """
    there = self._best.all_steps()
    if not step or any(other > step for other in there):
      return
    folder = self._workdir / "best" / str(step)
    try:
      if step not in there:
        raise UserError(f"{folder} is missing")
      _check(folder, sealed)
    except UserError as error:
      raise UserError(
        f"{error}, the best model so far; restore it from a copy, or start"
        " again in an empty workdir"
      ) from error

  def close(self) -> None:
    """Waits for what is being written.

    Raises:
      UserError: it cannot be written.
    """
    with self._writing(), contextlib.closing(self._best):
      self._latest.close()


def begun(workdir: pathlib.Path) -> bool:
  """Whether a training of this workdir has saved a checkpoint."""
  return bool(_steps(workdir / "checkpoints"))


def is_empty(workdir: pathlib.Path) -> bool:
  """Whether there is neither a checkpoint nor a best model."""
  return not begun(workdir) and not _steps(workdir / "best")


def _steps(folder: pathlib.Path) -> list[int]:
  return [int(p.name) for p in folder.glob("*") if p.name.isdigit()]


def _abstract(tree: PyTree) -> PyTree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def best_step(workdir: pathlib.Path) -> int:
  """Returns the step of the best validation.

  Raises:
    UserError: if the workdir holds no best checkpoint.
  """
  steps = _steps(workdir / "best")
  if not steps:
    raise UserError(
      f"{workdir} holds no trained model (no best/ checkpoint); train one with"
      f" python -m cadjax.main --workdir={workdir}"
    )
  return max(steps)


def restore_best(workdir: pathlib.Path) -> tuple[int, PyTree]:
  """Reads the variables of the best validation, as numpy on the host.

  Returns:
    (step, {"params": ..., "batch_stats": ...}).

  Raises:
    UserError: if the workdir holds no readable best checkpoint, or it or a
      file that describes the workdir has changed since it was written.
  """
  sealed, step = check_workdir(workdir), best_step(workdir)
  folder = workdir / "best" / str(step)
  try:
    _check(folder, sealed)
    with _best_manager(workdir) as manager:
      like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_host()),
        manager.item_metadata(step),
      )
      return step, manager.restore(step, args=ocp.args.StandardRestore(like))
  except Exception as error:  # Orbax raises many kinds.
    raise UserError(
      f"{folder} cannot be used ({_reason(error)}); restore it from a copy, or"
      " train again"
    ) from error


def _reason(error: Exception) -> str:
  """Returns what an error says, short enough for one line."""
  return one_line(error)[:300] or type(error).__name__


def _host() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
