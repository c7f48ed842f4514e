"""A small coronary tree on voxels, for the tests of the link."""

import functools

import numpy as np
import tubes

from cadjax.vessels.find import find_vessels
from cadjax.vessels.tree import STEP_MM, Branch

TOP, FORK = np.array([0.0, 0, 8]), np.array([0.0, 0, -6])
LEFT, RIGHT = np.array([16.0, 2, -26]), np.array([-14.0, 2, -30])
LINES = ([TOP, FORK], [FORK, LEFT], [FORK, RIGHT])
BOX = (-20, -8, -34), (22, 10, 14)
VOXEL = np.prod(tubes.GRIDS["cubic"][0])


@functools.cache
def scene():
  shape, affine = tubes.grid("cubic", *BOX)
  root = tubes.ball((0, 0, 12), 5, shape, affine)
  mask = np.zeros(shape, bool)
  for line in LINES:
    mask |= tubes.tube(line, 1.7, shape, affine)
  mask &= ~root
  return find_vessels(mask, root, affine), mask


def branch(kind, points_mm, parent=-1, radius_mm=1.5):
  """Returns a branch of its own, a point every half a millimetre."""
  return Branch(
    name=kind,
    kind=kind,
    sureness="high",
    parent=parent,
    course_mm=points_mm,
    course_distance_mm=STEP_MM * np.arange(len(points_mm)),
    start=0,
    free=0,
    radius_mm=np.full(len(points_mm), radius_mm),
  )


def on(line, share):
  return line[0] + share * (line[1] - line[0])


def ball(center, radius):
  tree, mask = scene()
  return tubes.ball(center, radius, mask.shape, tree.affine) & mask


def blobs(*places):
  """Returns a map of Gaussians, (mm, height) each."""
  tree, mask = scene()
  mm = tubes.centres(mask.shape, tree.affine)
  return sum(
    height * np.exp(-((mm - np.asarray(at)) ** 2).sum(-1) / 2 / 3**2)
    for at, height in places
  )
