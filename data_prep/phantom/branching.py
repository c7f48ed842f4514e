"""Trees of vessels or airways that fill a region evenly.

The method is that of Tawhai, Pullan and Hunter (2000), made simple: the
points that a branch supplies are halved again and again, and every branch goes
a part of the way toward the middle of its half.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Branches:
  """Straight pieces of a tree.

  Attributes:
    ends: [N, 2, 3], where each begins and ends.
    radii: [N, 2] at both ends.
    level: [N], 0 for the piece from the root.
  """

  ends: np.ndarray
  radii: np.ndarray
  level: np.ndarray


def grow(
  leaves: np.ndarray,
  root: np.ndarray,
  radius: float,
  rng: np.random.Generator,
  *,
  share: float = 0.42,
  thinnest: float = 0.72,
) -> Branches:
  """Grows a tree from `root` to near every leaf.

  Args:
    leaves: [N, 3], spread over what the tree supplies.
    root: [3], where it begins.
    radius: at the root; it falls with the number of leaves beyond, by Murray's
      law with the exponent of lungs, 2.6.
    rng: turns the planes that halve.
    share: of the way to the middle of a half that a branch goes.
    thinnest: radius of the last branches.

  Returns:
    The pieces, from the root on.
  """
  total = max(len(leaves), 1)
  turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  owner = np.zeros(len(leaves), int)
  begin, wide = np.asarray(root, float)[None], np.array([float(radius)])
  pieces = []
  for level in range(24):
    if not len(leaves):
      break
    number = len(begin)
    count = np.bincount(owner, minlength=number)
    middle = _means(leaves, owner, count)
    single = count == 1
    way = np.where(single, 0.9, share)[:, None]
    end = begin + way * (middle - begin)
    end += rng.normal(0, 0.05, end.shape) * np.linalg.norm(
      middle - begin, axis=1, keepdims=True
    )
    thin = np.maximum(radius * (count / total) ** (1 / 2.6), thinnest)
    thin = np.minimum(thin, wide)
    pieces.append(
      (
        np.stack([begin, end], 1),
        np.stack([np.minimum(wide, 1.15 * thin), thin], 1),
        np.full(number, level),
      )
    )
    # Halve by the plane across the widest of three turned axes.
    offset = (leaves - middle[owner]) @ turn
    spread = _means(offset**2, owner, count)
    along = spread.argmax(1)[owner]
    half = offset[np.arange(len(leaves)), along] > 0
    keep = ~single[owner]
    leaves, owner, half = leaves[keep], owner[keep], half[keep]
    used, owner = np.unique(2 * owner + half, return_inverse=True)
    begin, wide = end[used // 2], thin[used // 2]
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  if not pieces:
    return Branches(np.zeros((0, 2, 3)), np.zeros((0, 2)), np.zeros(0, int))
  ends, radii, levels = (np.concatenate(p) for p in zip(*pieces, strict=True))
  return Branches(ends, radii, levels)


def _means(values: np.ndarray, owner: np.ndarray, count: np.ndarray):
  sums = np.stack(
    [np.bincount(owner, column, len(count)) for column in values.T], 1
  )
  return sums / np.maximum(count, 1)[:, None]
