"""Does a scan look like what a model was trained on? In plain words."""

import numpy as np

from data_prep.volume import Volume


def describe(volume: Volume) -> dict[str, float]:
  """Returns intensity and anatomy features of a scan."""
  values = volume.hu[volume.hu > -1024]
  p01, p50, p99 = np.percentile(values, [1, 50, 99]) if values.size else [0] * 3
  return {"hu_p01": float(p01), "hu_p50": float(p50), "hu_p99": float(p99)}


def concerns(
  features: dict[str, float],
  reference: dict[str, tuple[float, float]] | None = None,
) -> list[str]:
  """Returns warnings, one sentence each; none if the scan looks usual."""
  said = []
  for name, value in features.items():
    low, high = (reference or {}).get(name, (-np.inf, np.inf))
    if not low <= value <= high:
      said.append(f"{name} {value:.4g} is outside {low:.4g} to {high:.4g}")
  return said
