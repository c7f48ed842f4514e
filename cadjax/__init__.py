"""cadjax: coronary artery disease from CT coronary angiography, in JAX.

Everything that a notebook needs, loaded at its first use:

  config = ...                                     a file of configs/
  cadjax.train_and_evaluate(config, "run")         train, or resume
  cadjax.evaluate_workdir("run")                   by patient, with intervals

  classifier = cadjax.load_classifier("run")       or load_segmenter
  scan = cadjax.read_scan("scan.nii.gz")           NIfTI, NRRD, MHA or DICOM
  result = cadjax.classify_scan(classifier, scan)  or segment_scan
  result.prediction.probability                    of CAD, in [0, 1]
  cadjax.write(result, "report")                   JSON, NIfTI, PNG, HTML

  result = cadjax.explain_scan(classifier, scan)   heat maps of every layer
  pair = cadjax.load_pair("run", "segmenter")      both models together
  pair = cadjax.load_pair()                        those that come with cadjax
  result = cadjax.link_scan(pair, scan)            located abnormalities

  result = cadjax.score_calcium(scan)              of a scan without contrast
  wide = cadjax.load_wide()                        finds the heart in a chest
  result = cadjax.segment_scan(cadjax.load_segmenter(), scan, wide=wide)

Volumes are [D, H, W]: inferior to superior, anterior to posterior, right to
left (LPS), in HU; places are LPS (x, y, z) in mm. What cannot be used raises
`data_prep.errors.UserError` with a message of one line.

The same from a shell: `cadjax --help`. Research software, not a medical
device.
"""

import importlib
from typing import Any

from data_prep import interrupt

__version__ = "0.2.0"

# Name -> the module that defines it.
_PUBLIC = {
  "train_and_evaluate": "cadjax.tasks",
  "evaluate_workdir": "cadjax.evaluation.workdirs",
  "load_classifier": "cadjax.classification.classifier",
  "load_segmenter": "cadjax.segmentation.segmenter",
  "load_wide": "cadjax.segmentation.segmenter",
  "load_pair": "cadjax.link.scan",
  "read_scan": "cadjax.data.scans",
  "classify_scan": "cadjax.classification.scan",
  "segment_scan": "cadjax.segmentation.scan",
  "explain_scan": "cadjax.explanation.scan",
  "link_scan": "cadjax.link.scan",
  "score_calcium": "cadjax.calcium.scan",
  "write": "cadjax.report.write",
}
__all__ = sorted(_PUBLIC)


interrupt.guard_imports()


def __getattr__(name: str) -> Any:
  # Loaded at the first use: a program pays for what it needs.
  if name not in _PUBLIC:
    raise AttributeError(f"module 'cadjax' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *_PUBLIC})
