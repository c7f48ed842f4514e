"""What every result of reading a scan with a trained model holds."""

import dataclasses
import datetime

from cadjax.data import scans
from cadjax.training import workdir
from data_prep.volume import Volume

# The warnings of all results, by what causes them.
WARNINGS = {
  "unlike": (
    "The scan is unlike the data that the {model} was trained on: do not rely"
    " on its {output}."
  ),
  "phantom": (
    "The {model} was trained on phantoms: its {output} is not evidence about"
    " patients."
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
  """A scan, what a model saw of it, and which model and software it was.

  Attributes:
    case: the name of the case, safe to print.
    input_name: base name of the file or folder.
    prepared: the scan and what the model saw of it.
    model: which model it was.
    software: versions of this run.
    created: UTC, ISO 8601.
  """

  case: str
  input_name: str
  prepared: scans.Prepared
  model: workdir.ModelCard
  software: workdir.Software
  created: str

  @property
  def scan(self) -> Volume:
    """The scan on the scanner's grid."""
    return self.prepared.scan

  @property
  def model_input(self) -> Volume:
    """int16 HU on the grid that the model saw."""
    return self.prepared.model_input

  @property
  def notes(self) -> tuple[str, ...]:
    """What the reader of the scan chose, left out or assumed, in sentences."""
    # The grid's own notes follow those of the reader.
    return tuple(self.model_input.notes or self.scan.notes)

  def warnings(self, model: str, output: str) -> list[str]:
    """Returns the warnings that any model's output needs, in sentences.

    Args:
      model: what the model is called in them, such as "segmenter".
      output: what must not be relied on, such as "segmentation".
    """
    causes = []
    if self.prepared.concerns:
      causes.append("unlike")
    if self.model.trained_on.is_phantom:
      causes.append("phantom")
    return [
      WARNINGS[cause].format(model=model, output=output) for cause in causes
    ]


def begin(
  trained: workdir.Trained, scan: scans.Scan, prepared: scans.Prepared
) -> Reading:
  """Returns what a result of this model and scan begins with."""
  now = datetime.datetime.now(datetime.UTC)
  return Reading(
    case=scan.case,
    input_name=scan.name,
    prepared=prepared,
    model=workdir.describe_model(trained),
    software=workdir.software(),
    created=now.isoformat(timespec="seconds"),
  )
