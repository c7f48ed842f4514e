"""TFDS builder of CTCA volumes, written as ArrayRecord shard by shard."""

import csv
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from data_prep import phantom, sources, splits, workers
from data_prep.ctca import records, stored
from data_prep.errors import UserError
from data_prep.geometry import GridSpec

# What was noted of the scans, a line each; phantoms have none.
NOTES = "notes.txt"
# Bytes of voxels: large enough for fast sequential reads, small enough that
# eight readers share a data set of a hundred paper-sized volumes.
SHARD_BYTES = 256 << 20


@dataclasses.dataclass(eq=False)
class CtcaConfig(tfds.core.BuilderConfig):
  """A source of cases on a target grid.

  Attributes:
    source: a name in `sources.SOURCES`.
    grid: the target grid.
    input: folder or manifest of the scans; TFDS's manual_dir if None.
    options: keyword arguments of the source's finder (labels, splits, ...).
    cases: how many phantoms to draw.
    severity: of the phantoms, "clinical" or "overt".
    scanner: of the phantoms, what replaces drawn values of the scanner.
    population: of the phantoms, what replaces drawn values of the patients.
    seed: of the phantoms, the splits and the folds.
    fractions: shares of train, validation and test.
    num_folds: of cross-validation.
    has_mask: whether records hold a mask.
    workers: processes; all cores if None.
    skip_bad: whether to leave out unusable cases instead of stopping.
  """

  source: str = "phantom"
  grid: GridSpec = dataclasses.field(default_factory=GridSpec)
  input: str | None = None
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  cases: int = 88
  severity: str = "clinical"
  scanner: dict[str, Any] = dataclasses.field(default_factory=dict)
  population: dict[str, Any] = dataclasses.field(default_factory=dict)
  seed: int = 0
  fractions: Sequence[float] = splits.PAPER_FRACTIONS
  num_folds: int = 5
  has_mask: bool = True
  workers: int | None = None
  skip_bad: bool = False


def config_name(source: str, grid: GridSpec) -> str:
  """Returns the name of a source on a grid: `phantom_heart_64x64x64`."""
  if grid.kind == "spacing":
    size = "x".join(f"{s:g}" for s in grid.spacing_mm) + "mm"
  else:
    size = "x".join(map(str, grid.shape))
  return f"{source}_{grid.kind}_{size}"


def _config(source: str, **grid: Any) -> CtcaConfig:
  spec = GridSpec(**grid)
  return CtcaConfig(name=config_name(source, spec), source=source, grid=spec)


class Ctca(tfds.core.ShardBasedBuilder):
  """CTCA volumes with CAD labels.

  Records are written as they come, so memory does not grow with the data set
  as it would in a GeneratorBasedBuilder, which sorts a split in memory.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First format."}
  BUILDER_CONFIGS = [
    _config("phantom", kind="heart", shape=(64, 64, 64)),
    *(
      _config(source, kind=kind)
      for source in sources.SOURCES
      for kind in ("heart", "paper")
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Lay the scans out as they come from their source, or with a manifest.csv,"
    " and give the folder as manual_dir. The phantom needs no scans."
  )

  # Of the last build: the rows of cases.csv, the checksums of the records of
  # each split, a line per case left out, and (case id, what there is to say of
  # its scan).
  rows: Sequence[dict[str, Any]] = ()
  checksums: Mapping[str, Sequence[dict[str, Any]]] = {}
  skipped: Sequence[str] = ()
  notes: Sequence[tuple[str, str]] = ()
  _results: Generator | None = None

  def _create_builder_config(
    self, builder_config: Any, version: Any
  ) -> tfds.core.BuilderConfig | None:
    # TFDS reserves the names of BUILDER_CONFIGS for exactly these; here a
    # name holds source and grid, while seed, cases or workers may differ.
    if isinstance(builder_config, CtcaConfig):
      return builder_config
    return super()._create_builder_config(builder_config, version)

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    shape = config.grid.shape
    if config.grid.kind == "spacing":
      shape = (None, None, None)
    raw = functools.partial(
      tfds.features.Tensor, encoding=tfds.features.Encoding.BYTES
    )
    features = {
      "image": raw(shape=shape, dtype=np.int16),
      "label": tfds.features.ClassLabel(names=list(splits.LABEL_NAMES)),
      "case_id": tfds.features.Text(),
      "patient_id": tfds.features.Text(),
      "fold": np.int64,
      "spacing": tfds.features.Tensor(shape=(3,), dtype=np.float32),
      "grid_affine": raw(shape=(4, 4), dtype=np.float64),
      "source_shape": tfds.features.Tensor(shape=(3,), dtype=np.int64),
      "source_affine": raw(shape=(4, 4), dtype=np.float64),
      "mask_classes": tfds.features.Tensor(
        shape=(len(sources.CLASS_NAMES),), dtype=np.uint8
      ),
      "lesions": tfds.features.Text(),
    }
    if config.has_mask:
      features["mask"] = raw(shape=shape, dtype=np.uint8)
    metadata = {
      "format": stored.FORMAT,
      "source": config.source,
      "grid": config.grid.to_dict(),
      "seed": config.seed,
      "severity": config.severity if config.source == "phantom" else None,
      "edition": phantom.EDITION if config.source == "phantom" else None,
      "scanner": config.scanner,
      "population": config.population,
      "fractions": list(config.fractions),
      "num_folds": config.num_folds,
      "mask_names": list(sources.CLASS_NAMES),
    }
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(metadata),
      disable_shuffling=True,
    )

  def _plan(self, dl_manager: Any) -> list[records.Job]:
    config = self.builder_config
    if config.source == "phantom":
      cases = sources.phantom(config.cases, seed=config.seed, **config.options)
    else:
      folder = config.input or dl_manager.manual_dir
      cases = sources.find_cases(config.source, folder, **config.options)
    missing = [line for case in cases for line in sources.problems(case)]
    if missing and not config.skip_bad:
      more = f" (and {len(missing) - 1} more like it)" if missing[1:] else ""
      raise UserError(missing[0] + more)
    return records.plan(
      cases,
      fractions=config.fractions,
      num_folds=config.num_folds,
      seed=config.seed,
    )

  def _shard_iterators_per_split(
    self, dl_manager: Any
  ) -> dict[str, list[Callable[[], Iterator]]]:
    config = self.builder_config
    jobs = self._plan(dl_manager)
    recipe = records.Recipe(
      config.grid,
      config.severity,
      config.has_mask,
      config.scanner,
      config.population,
    )
    self._results = workers.ordered_map(
      functools.partial(records.make_record, recipe=recipe),
      jobs,
      workers=config.workers or workers.available_cores(),
    )
    self._bar = tqdm.tqdm(total=len(jobs), unit="case", desc=config.name)
    # TFDS runs the shards one after the other, in the order given here, so
    # that all can draw from one stream.
    stream = zip(jobs, self._results, strict=True)
    self.rows, self.skipped, self.notes = [], [], []
    self.checksums = {split: [] for split in splits.SPLITS}
    per_shard = _cases_per_shard(config)
    shards: dict[str, list[Callable[[], Iterator]]] = {}
    for split, members in itertools.groupby(jobs, lambda job: job.split):
      count = len(list(members))
      shards[split] = [
        functools.partial(
          self._examples, itertools.islice(stream, min(per_shard, count - i))
        )
        for i in range(0, count, per_shard)
      ]
    return shards

  def _examples(self, stream: Iterator) -> Iterator[tuple[int, dict]]:
    for job, result in stream:
      self._bar.update()
      if isinstance(result, UserError):
        if not self.builder_config.skip_bad:
          raise result
        self.skipped.append(f"{job.case.case_id}: {result}")
        continue
      example, row, notes = result
      self.notes += [(job.case.case_id, note) for note in notes]
      index = sum(other["split"] == job.split for other in self.rows)
      self.rows.append({"split": job.split, "index": index, **row})
      self.checksums[job.split].append(stored.entry(example))
      yield index, example
      # TFDS counts the examples of a shard by keeping them all until its end.
      example.clear()

  def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
    try:
      super()._download_and_prepare(*args, **kwargs)
    except RuntimeError as error:
      # As ArrayRecord reports what the system refuses its writer.
      reason, writing, path = str(error).partition("; writing ")
      if not writing:
        raise
      raise UserError(
        f"{path.partition(';')[0]}: the records cannot be written ({reason});"
        " free some space, or choose another --out"
      ) from error
    finally:
      if self._results is not None:
        self._results.close()
        self._bar.close()
    for split in self.info.splits:
      if not self.info.splits[split].num_examples:
        raise UserError(f"no usable case is left for the split {split}")
    # Here, because TFDS calls the folder finished right after.
    folder = pathlib.Path(self.data_dir)
    _write_rows(folder / "cases.csv", self.rows)
    if self.notes:
      lines = [f"{case_id}: {note}\n" for case_id, note in self.notes]
      (folder / NOTES).write_text("".join(lines))
    stored.write(folder, self.checksums, self.info.metadata)


def _cases_per_shard(config: CtcaConfig) -> int:
  voxels = np.prod(config.grid.shape, dtype=np.int64)
  if config.grid.kind == "spacing":
    # A field of view of about 250 x 250 x 150 mm.
    voxels = 250 * 250 * 150 / np.prod(config.grid.spacing_mm)
  return max(1, int(SHARD_BYTES / (voxels * (3 if config.has_mask else 2))))


def _write_rows(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
