"""TFDS records on disk to batches of numpy arrays on the host.

The order of the examples is a function of (seed, epoch) alone: to resume at
step s is to start reading at batch s. Grain reads ahead in threads.
"""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from data_prep import streams
from data_prep.ctca import stored
from data_prep.errors import UserError, one_line
from data_prep.tissues import CLASS_NAMES

CaseRow = dict[str, str]
Batch = dict[str, np.ndarray]
SPLITS = ("train", "validation", "test")
# The files whose contents tell one build from another, where the records have
# no checksums.
IDENTITY = ("dataset_info.json", "cases.csv")
COLUMNS = ("split", "index", "case_id", "patient_id", "label", "fold")
MOST_READERS = 8  # And batches in memory at a time.


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A built data set, with the split that the config asks for.

  Attributes:
    path: the folder with dataset_info.json.
    rows: for each split, the rows of cases.csv; `stored` in a row is the
      split that holds its record.
    metadata: what the builder wrote: grid, source, seed, ...
    sources: random access to the records, by stored split.
    fingerprint: the identity of the data, see `fingerprint_of`.
    records: for each stored split, `stored.entry` of its records; None for a
      data set of an older version.
    prior: what gives the mask that a classifier sees beside the volume, see
      `priors`; None for one that sees the volume alone.
    prior_masks: for each split the identity of the predicted masks that
      `prior` reads, see `priors.fingerprints`; empty without any.
  """

  path: pathlib.Path
  rows: Mapping[str, Sequence[CaseRow]]
  metadata: Mapping[str, Any]
  sources: Mapping[str, Any]
  fingerprint: str
  records: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
  prior: Callable[[CaseRow, Mapping[str, Any]], np.ndarray] | None = None
  prior_masks: Mapping[str, str | None] = dataclasses.field(
    default_factory=dict
  )

  @property
  def grid(self) -> Mapping[str, Any]:
    """The recipe of the target grid, `GridSpec.to_dict`."""
    return self.metadata["grid"]

  @property
  def shape(self) -> tuple[int, int, int]:
    """Voxels of one volume [D, H, W]."""
    return tuple(self.read(next(iter(self._all_rows())))["image"].shape)

  @property
  def has_masks(self) -> bool:
    """Whether the records hold masks."""
    return "mask" in self.read(next(iter(self._all_rows())))

  def _all_rows(self) -> Iterator[CaseRow]:
    for split in SPLITS:
      yield from self.rows[split]

  def read(self, row: CaseRow) -> dict[str, Any]:
    """Reads one record, as TFDS decodes it.

    Raises:
      UserError: it cannot be read, or is not what was built.
    """
    split, index = row["stored"], int(row["index"])
    try:
      record = self.sources[split][index]
      whole = record["case_id"].decode() == row["case_id"]
      if self.records is not None:
        whole &= stored.crc32(record) == self.records[split][index]["crc32"]
      reason = "it is not the record that was built"
    except MemoryError:
      raise
    except Exception as error:  # Whatever the bytes make of the reader.
      whole, reason = False, one_line(error)[:200] or type(error).__name__
    if not whole:
      raise UserError(
        f"{self.path}: the record of the case {row['case_id']} is damaged"
        f" ({reason}); build the data set again, or restore it from a copy"
      )
    # Older data sets knew of fewer classes.
    known = record["mask_classes"]
    missing = len(CLASS_NAMES) - len(known)
    return {**record, "mask_classes": np.pad(known, (0, missing))}

  def batch(
    self, rows: Sequence[CaseRow], size: int, slices: Sequence | None = None
  ) -> Batch:
    """Stacks records into a batch of `size`, padded with invalid zeros.

    Args:
      rows: at most `size` of them.
      size: of the global batch.
      slices: for each row the indices of the depth slices to keep, or None.

    Returns:
      image int16 HU [B, D, H, W, 1], label int32 [B], valid float32 [B] and
      index int32 [B]; with a prior, prior uint8 [B, D, H, W].
    """
    records = [self.read(row) for row in rows]
    keep = [slice(None)] * len(rows) if slices is None else slices
    images = [x["image"][k] for x, k in zip(records, keep, strict=True)]
    batch = {
      "image": np.zeros((size, *images[0].shape, 1), np.int16),
      "label": np.zeros(size, np.int32),
      "valid": np.zeros(size, np.float32),
      "index": np.arange(size, dtype=np.int32),
    }
    for i, (row, x) in enumerate(zip(rows, images, strict=True)):
      batch["image"][i, ..., 0] = x
      batch["label"][i] = int(row["label"])
      batch["valid"][i] = 1.0
    if self.prior is not None:
      batch["prior"] = np.zeros((size, *images[0].shape), np.uint8)
      for i, (row, x) in enumerate(zip(rows, records, strict=True)):
        batch["prior"][i] = self.prior(row, x)[keep[i]]
    return batch

  def eval_batches(
    self, split: str, batch_size: int
  ) -> Iterator[tuple[Batch, Sequence[CaseRow]]]:
    """Yields every case of a split once, the last batch padded.

    Yields:
      a batch (see `batch`) and the rows of its valid examples, in order.
    """
    rows = self.rows[split]
    chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    yield from read_ahead(
      len(chunks), lambda i: (self.batch(chunks[i], batch_size), chunks[i])
    )

  def train_batches(
    self,
    batch_size: int,
    *,
    seed: int,
    start: int,
    stop: int,
    slices_per_volume: int | None = None,
    layout: Callable[[np.ndarray], np.ndarray] | None = None,
  ) -> Iterator[tuple[Batch, Sequence[CaseRow]]]:
    """Yields the batches of steps `start` to `stop`, in their shuffled order.

    Args:
      batch_size: global; the remainder of an epoch is left out, another one
        each epoch.
      seed: of the order and of the slices drawn.
      start: the first step.
      stop: one past the last step.
      slices_per_volume: how many slices of each volume, drawn without
        replacement, a 2D model sees; None gives whole volumes.
      layout: lays the images of a batch out as the network takes them, in the
        threads that read ahead.
    """
    rows = self.rows["train"]
    per_epoch = self.steps_per_epoch(batch_size)
    depth = None if slices_per_volume is None else self.shape[0]

    def load(i: int) -> tuple[Batch, Sequence[CaseRow]]:
      epoch, position = divmod(start + i, per_epoch)
      order = np.random.default_rng((seed, epoch)).permutation(len(rows))
      picked = order[position * batch_size : (position + 1) * batch_size]
      chosen = [rows[k] for k in picked]
      slices = None
      if depth is not None:
        slices = [
          np.sort(
            np.random.default_rng((seed, epoch, k)).choice(
              depth, slices_per_volume, replace=False
            )
          )
          for k in picked
        ]
      batch = self.batch(chosen, batch_size, slices)
      if layout is not None:
        batch["image"] = layout(batch["image"])
      return batch, chosen

    yield from read_ahead(stop - start, load)

  def steps_per_epoch(self, batch_size: int) -> int:
    """Full batches in the training split; UserError if there is none."""
    n = len(self.rows["train"])
    if n < batch_size:
      raise UserError(
        f"{self.path}: {n} training cases do not fill a batch of {batch_size};"
        " lower config.data.batch_size"
      )
    return n // batch_size


class _Lazy:
  """A sequence computed on access, as Grain's sources want it."""

  def __init__(self, length: int, load):
    self._length = length
    self._load = load

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, i):
    return self._load(int(i))


def read_ahead(length: int, load: Callable[[int], Any]) -> Iterator:
  """Yields load(0), ..., load(length - 1), called in threads and in order."""
  if length <= 0:
    return
  # Unpacking is the work, and it runs outside Python's lock.
  threads = min(max(os.cpu_count() or 1, 2), MOST_READERS)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
  source = grain.MapDataset.source(_Lazy(length, load))
  dataset = source.to_iter_dataset(options)
  # Grain skips None and stops by itself after the last element.
  yield from iter(dataset)


def find_dataset(path: str | pathlib.Path) -> pathlib.Path:
  """Returns the one folder at or under `path` that holds a built data set.

  Raises:
    UserError: if there is none, or more than one to choose from.
  """
  root = pathlib.Path(path)
  found = sorted(p.parent for p in root.rglob("dataset_info.json"))
  found = [p for p in found if not p.name.startswith("incomplete.")]
  if (root / "dataset_info.json").exists():
    return root
  if not found:
    raise UserError(
      f"{root}: no data set here; name the folder of one with"
      " --config.data.path=DIR (--data=DIR of cadjax.evaluate), or build one"
      f" with python -m data_prep.build --source=phantom --out={root}"
    )
  if len(found) > 1:
    names = ", ".join(str(p) for p in found)
    raise UserError(f"{root} holds several data sets; name one of: {names}")
  return found[0]


def fingerprint_of(path: pathlib.Path) -> str:
  """Returns the identity of a built data set, 16 hexadecimal digits.

  It is that of its records, see `stored.fingerprint`; of data sets of older
  versions, whose records have no checksums, that of the description and the
  table of cases.

  Raises:
    UserError: the data set has changed since it was built.
  """
  return _fingerprint(path, stored.check(path))


def _fingerprint(path: pathlib.Path, found: Mapping[str, Any] | None) -> str:
  if found is not None:
    return stored.fingerprint(found)
  digest = hashlib.sha256()
  for name in IDENTITY:
    digest.update((path / name).read_bytes())
  return digest.hexdigest()[:16]


def _read_cases(path: pathlib.Path) -> list[CaseRow]:
  cases = path / "cases.csv"
  if not cases.exists():
    raise UserError(f"{cases} is missing; build the data set again")
  try:
    with cases.open(newline="", encoding="utf-8") as f:
      rows = [{**row, "stored": row["split"]} for row in csv.DictReader(f)]
    if not rows:
      raise ValueError("it has no row")
    for row in rows:
      if None in (row[name] for name in COLUMNS) or row["split"] not in SPLITS:
        raise ValueError(f"the row of {row['case_id']!r}")
      int(row["index"]), int(row["fold"])
  except (OSError, ValueError, KeyError, csv.Error) as error:
    raise UserError(
      f"{cases} is not what data_prep.build writes ({one_line(error)}); build"
      " the data set again"
    ) from error
  return rows


def _by_fold(
  rows: Sequence[CaseRow], fold: int, path
) -> dict[str, list[CaseRow]]:
  """Tests on fold `fold`, validates on the next one, trains on the rest."""
  folds = sorted({int(row["fold"]) for row in rows})
  if fold not in folds or len(folds) < 3:
    raise UserError(
      f"{path} has the folds {folds}; config.data.fold = {fold} must be one of"
      " at least 3"
    )
  following = folds[(folds.index(fold) + 1) % len(folds)]
  split_of = {fold: "test", following: "validation"}
  result: dict[str, list[CaseRow]] = {split: [] for split in SPLITS}
  for row in rows:
    result[split_of.get(int(row["fold"]), "train")].append(row)
  return result


def _check_patients(rows: Mapping[str, Sequence[CaseRow]], path) -> None:
  seen: dict[str, str] = {}
  for split in SPLITS:
    for row in rows[split]:
      other = seen.setdefault(row["patient_id"], split)
      if other != split:
        raise UserError(
          f"{path}: patient {row['patient_id']} is in {other} and in {split};"
          " build the data set again with one split a patient"
        )


def draw_patients(
  rows: Sequence[CaseRow],
  patients: int | None,
  cad_fraction: float | None,
  seed: int,
) -> list[CaseRow]:
  """Returns the scans of patients drawn at random, in their order.

  Args:
    rows: of scans with a label.
    patients: how many to draw; None for as many as `cad_fraction` leaves.
    cad_fraction: share of them with CAD; None for that of `rows`.
    seed: of the draw; more patients of one seed include the fewer.

  Raises:
    UserError: there are not so many.
  """
  label_of: dict[str, int] = {}
  for row in rows:
    known = label_of.get(row["patient_id"], 0)
    label_of[row["patient_id"]] = max(known, int(row["label"]))
  rng = np.random.default_rng(seed)
  ids = [str(name) for name in rng.permutation(sorted(label_of))]
  groups = [[x for x in ids if label_of[x] == label] for label in (0, 1)]
  normal, cad = map(len, groups)
  if cad_fraction is None:
    cad_fraction = cad / len(ids)
  if not 0 <= cad_fraction <= 1:
    raise UserError(
      f"config.data.subset.cad_fraction is {cad_fraction}; it must be in [0, 1]"
    )
  if patients is None:
    most = [len(ids)]
    most += [int(cad / cad_fraction)] if cad_fraction > 0 else []
    most += [int(normal / (1 - cad_fraction))] if cad_fraction < 1 else []
    patients = min(most)
  wanted = round(patients * cad_fraction)
  if patients < 1 or wanted > cad or patients - wanted > normal:
    raise UserError(
      f"config.data.subset asks for {wanted} training patients with CAD and"
      f" {patients - wanted} without; there are {cad} and {normal}"
    )
  kept = {*groups[0][: patients - wanted], *groups[1][:wanted]}
  return [row for row in rows if row["patient_id"] in kept]


def permute_labels(rows: Sequence[CaseRow], seed: int) -> list[CaseRow]:
  """Returns scans with the labels of their patients permuted, in their order.

  As the data randomisation test wants them (Adebayo et al. 2018, arXiv
  1810.03292; see `explanation.checks.label_randomisation`): as many of each
  label as before, and nothing to do with the images.

  Args:
    rows: of scans with a label.
    seed: of the permutation.
  """
  label_of: dict[str, int] = {}
  for row in rows:
    known = label_of.get(row["patient_id"], 0)
    label_of[row["patient_id"]] = max(known, int(row["label"]))
  ids = sorted(label_of)
  drawn = np.random.default_rng(seed).permutation([label_of[x] for x in ids])
  given = dict(zip(ids, map(str, drawn), strict=True))
  return [{**row, "label": given[row["patient_id"]]} for row in rows]


def open_dataset(
  config: ml_collections.ConfigDict, *, labelled: bool = True
) -> Dataset:
  """Opens a built data set.

  Args:
    config: `config.data`, with path, fold (None keeps the stored split) and
      subset (of the training patients, see `draw_patients`); and, where a
      config has it, permute_labels, the seed that permutes the training labels
      (see `permute_labels`). Validation is then of the training cases, so that
      the checkpoint is kept that has learned them by heart, and its accuracy
      tells how well.
    labelled: whether to leave out the cases without a label.

  Raises:
    UserError: if there is no such data set or it cannot be used.
  """
  path = find_dataset(config.path)
  streams.check_kinds(path)
  stored.check_features(path)
  found = stored.check(path)
  rows = _read_cases(path)
  if labelled:
    rows = [row for row in rows if row["label"] in ("0", "1")]
  if config.fold is None:
    by_split = {s: [r for r in rows if r["split"] == s] for s in SPLITS}
  else:
    by_split = _by_fold(rows, config.fold, path)
  _check_patients(by_split, path)
  subset = config.subset
  if subset.patients or subset.cad_fraction is not None:
    by_split["train"] = draw_patients(by_split["train"], **subset)
  seed = config.get("permute_labels")
  if seed is not None:
    if not labelled:
      raise UserError("config.data.permute_labels is of a classifier's labels")
    by_split["train"] = permute_labels(by_split["train"], seed)
    by_split["validation"] = by_split["train"]
  metadata = json.loads((path / "metadata.json").read_text())
  return Dataset(
    path,
    by_split,
    metadata,
    _open_records(path),
    _fingerprint(path, found),
    found and found["records"],
  )


def _open_records(path: pathlib.Path) -> dict[str, Any]:
  """Opens the records of a data set for random access, by split."""
  try:
    builder = tfds.builder_from_directory(path)
    return {
      split: builder.as_data_source(split) for split in builder.info.splits
    }
  except Exception as error:  # TFDS raises many kinds.
    raise UserError(
      f"{path}: the records cannot be opened ({one_line(error)[:200]}); build"
      " the data set again, or restore it from a copy"
    ) from error
