"""Findings against the lesions that are known."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from cadjax.link.findings import Finding


@dataclasses.dataclass(frozen=True)
class Matches:
  """Findings against the lesions that are there.

  Attributes:
    hits: (finding, lesion, mm apart) of every lesion that was hit.
    misses: lesions that no finding hit.
    false_positives: findings with no lesion within the tolerance.
    duplicates: findings near a lesion that another finding hit.
  """

  hits: tuple[tuple[int, int, float], ...]
  misses: tuple[int, ...]
  false_positives: tuple[int, ...]
  duplicates: tuple[int, ...]


def match_lesions(
  findings: Sequence[Finding],
  lesions_mm: Sequence[np.ndarray],
  tolerance_mm: float = 5.0,
) -> Matches:
  """Matches findings with lesions.

  A finding is its position, one point: an extent would let a finding as long
  as a vessel hit all of its lesions. A lesion is one point, its centre, or
  points along it; a finding hits it within the tolerance of the nearest. One
  finding hits at most one lesion and one lesion is hit by at most one
  finding, chosen for as many hits as possible and then for the least
  distance. What is left near a lesion that is hit already is a duplicate, not
  a false positive, as is usual in scoring detection.

  Args:
    findings: of one scan.
    lesions_mm: [3] or [K, 3] LPS mm each.
    tolerance_mm: 5 by default.

  Returns:
    Numbers of findings and lesions, in their order here.
  """
  apart = np.full((len(findings), len(lesions_mm)), np.inf)
  for k, lesion in enumerate(lesions_mm):
    points = cKDTree(np.asarray(lesion, float).reshape(-1, 3))
    for j, finding in enumerate(findings):
      apart[j, k] = points.query(finding.position_mm)[0]
  near = apart <= tolerance_mm
  # A hit is worth more than any distance that it may add up to.
  worth = np.where(near, 1e6 - apart, 0.0)
  rows, columns = linear_sum_assignment(worth, maximize=True)
  hits = tuple(
    (int(j), int(k), float(apart[j, k]))
    for j, k in zip(rows, columns, strict=True)
    if near[j, k]
  )
  used, hit = {j for j, _, _ in hits}, {k for _, k, _ in hits}
  rest = [j for j in range(len(findings)) if j not in used]
  return Matches(
    hits=hits,
    misses=tuple(k for k in range(len(lesions_mm)) if k not in hit),
    false_positives=tuple(j for j in rest if not near[j].any()),
    duplicates=tuple(j for j in rest if near[j].any()),
  )
