"""classes: the class sets, and that their order is that of the records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadjax.core import lookup
from cadjax.data import classes
from data_prep import tissues


@pytest.mark.parametrize(
  ("task", "expected", "table"),
  [
    (
      "aorta_coronaries",
      ("background", "aorta", "coronaries"),
      [0, 1, 2, 2, 2],
    ),
    ("coronaries", ("background", "coronaries"), [0, 0, 1, 1, 1]),
    ("four", tissues.VESSEL_CLASSES, [0, 1, 2, 3, 4]),
  ],
)
def test_names_and_table(task, expected, table):
  made = classes.CLASS_SETS[task]
  assert made.names == expected
  assert made.table.dtype == np.uint8
  np.testing.assert_array_equal(made.table[:5], table)
  assert not made.table[5:].any()


def test_the_classes_of_the_chest_are_made_of_tissues():
  made = classes.CLASS_SETS["chest"]
  number = dict(zip(tissues.CLASS_NAMES, made.table, strict=True))
  names = {name: made.names[at] for name, at in number.items()}
  assert names["aorta"] == names["aortic_wall"] == "aorta"
  assert names["left_ventricle"] == "left_ventricle"
  assert names["pulmonary_veins"] == names["inferior_vena_cava"]
  assert names["marrow"] == "bone"
  assert names["lung_vessels"] == "lungs"
  assert names["lumen"] == names["fat"] == "background"


@pytest.mark.parametrize("task", classes.CLASS_SETS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_mask_is_mapped_alike_by_numpy_and_jax(task, dtype):
  mask = (
    np.random.default_rng(0)
    .integers(0, len(classes.CLASS_NAMES), (2, 3, 4, 5))
    .astype(dtype)
  )
  expected = np.vectorize(classes.CLASS_SETS[task].table.tolist().__getitem__)(
    mask
  )
  on_host = classes.map_mask(mask, task)
  assert isinstance(on_host, np.ndarray)
  on_device = jax.jit(lambda m: classes.map_mask(m, task))(mask)
  assert isinstance(classes.map_mask(jnp.asarray(mask), task), jax.Array)
  for mapped in (on_host, on_device):
    assert mapped.dtype == np.uint8
    np.testing.assert_array_equal(mapped, expected)


LUMEN_ALONE = [1, 0, 1, 0, 0]
AORTA_ALONE = [1, 1, 0, 0, 0]
PLAQUE_ALONE = [1, 0, 0, 1, 1]
NO_MASK = [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
  ("task", "known", "expected"),
  [
    ("aorta_coronaries", [1, 1, 1, 1, 1], [1, 1, 1]),
    ("aorta_coronaries", LUMEN_ALONE, [1, 0, 1]),
    ("aorta_coronaries", AORTA_ALONE, [1, 1, 0]),
    ("aorta_coronaries", PLAQUE_ALONE, [1, 0, 0]),
    ("coronaries", LUMEN_ALONE, [1, 1]),
    ("coronaries", AORTA_ALONE, [1, 0]),
    ("four", LUMEN_ALONE, LUMEN_ALONE),
    ("four", PLAQUE_ALONE, PLAQUE_ALONE),
    ("coronaries", NO_MASK, [0, 0]),
  ],
)
def test_known_follows_the_first_part(task, known, expected):
  known = np.array([known, [1, 1, 1, 1, 1]], np.uint8)
  expected = [expected, [1] * len(expected)]
  for given in (known, jnp.asarray(known)):
    mapped = classes.map_known(given, task)
    assert type(mapped) is type(given)
    assert mapped.dtype == np.uint8
    np.testing.assert_array_equal(mapped, expected)
  np.testing.assert_array_equal(
    classes.map_known(known[0] > 0, task), np.array(expected[0], bool)
  )


def test_an_unknown_task_is_told():
  with pytest.raises(
    lookup.UnknownName,
    match="unknown class set 'coronary'; did you mean 'coronarie",
  ):
    classes.map_mask(np.zeros(3, np.uint8), "coronary")
