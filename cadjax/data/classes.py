"""What a segmenter distinguishes: classes of the stored masks, merged or not.

A stored mask has all of `CLASS_NAMES`, and beside it which of them its source
annotates ("known"). A class set keeps some of them, merges some and leaves the
rest to the background.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cadjax.core import lookup
from data_prep.tissues import CLASS_NAMES, VESSEL_CLASSES

Array = Any  # numpy's or jax's; what comes in goes out.


@dataclasses.dataclass(frozen=True)
class ClassSet:
  """The classes of a segmenter.

  Attributes:
    parts: class -> the stored classes that it is made of; if the first of
      these is annotated, the class is known.
    organ: classes that together are one piece in every patient.
  """

  parts: Mapping[str, tuple[str, ...]]
  organ: tuple[str, ...] = ()

  @property
  def names(self) -> tuple[str, ...]:
    """The K classes in the order of the logits; the first is background."""
    return ("background", *self.parts)

  @property
  def table(self) -> np.ndarray:
    """uint8 [classes]: stored class -> class of the set."""
    table = np.zeros(len(CLASS_NAMES), np.uint8)
    for number, parts in enumerate(self.parts.values(), 1):
      table[[CLASS_NAMES.index(part) for part in parts]] = number
    return table


# Of the class set "chest".
HEART = (
  *("left_ventricle", "right_ventricle", "left_atrium", "right_atrium"),
  "myocardium",
)
_CORONARIES = ("lumen", "stable_plaque", "unstable_plaque")
CLASS_SETS = {
  "aorta_coronaries": ClassSet(
    {"aorta": ("aorta",), "coronaries": _CORONARIES}
  ),
  "coronaries": ClassSet({"coronaries": _CORONARIES}),
  "four": ClassSet({name: (name,) for name in VESSEL_CLASSES[1:]}),
  "chest": ClassSet(
    {
      "aorta": ("aorta", "aortic_wall"),
      "left_ventricle": ("left_ventricle",),
      "right_ventricle": ("right_ventricle",),
      "left_atrium": ("left_atrium",),
      "right_atrium": ("right_atrium",),
      "myocardium": ("myocardium",),
      "great_vessels": (
        "pulmonary_artery",
        "pulmonary_veins",
        "superior_vena_cava",
        "inferior_vena_cava",
      ),
      "lungs": ("lung", "lung_vessels"),
      "bone": ("bone", "marrow"),
    },
    organ=HEART,
  ),
}


def get_class_set(name: str) -> ClassSet:
  """Returns one of `CLASS_SETS`; raises `lookup.UnknownName` otherwise."""
  return lookup.look_up(CLASS_SETS, name, "class set")


def map_mask(mask: Array, class_set: str) -> Array:
  """Translates a stored mask to the classes of a class set.

  Args:
    mask: [...], integers, indices in `CLASS_NAMES`.
    class_set: a key of `CLASS_SETS`.

  Returns:
    [...], uint8, numbers in the set's `names`.
  """
  table = get_class_set(class_set).table
  if isinstance(mask, jax.Array):
    return jnp.asarray(table)[mask]
  return table[mask]


def map_known(known: Array, class_set: str) -> Array:
  """Translates which classes a source annotates to those of a class set.

  A merged class is known if its first part is: coronaries are known where the
  lumen is. ImageCAS and others mark the lumen alone, and would teach nothing
  of coronaries if plaque had to be marked, too. Plaque that they leave out of
  the lumen counts as background in a set with coronaries, and as unknown in
  one that distinguishes plaque.

  Args:
    known: [..., classes], whether each of `CLASS_NAMES` is annotated.
    class_set: a key of `CLASS_SETS`.

  Returns:
    [..., K], of the type of `known`.
  """
  first = [parts[0] for parts in get_class_set(class_set).parts.values()]
  return known[..., [0, *(CLASS_NAMES.index(name) for name in first)]]
