"""Validation of a classifier by patient, and data that it cannot use."""

import types

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cadjax.classification import task
from cadjax.core import parallel
from configs import resnet2d, resnet3d
from data_prep.errors import UserError


def row(patient, label):
  return {"patient_id": patient, "label": str(label)}


def loss_fn(logits, labels):
  picked = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
  return jax.nn.logsumexp(logits, -1) - picked


def test_scans_of_one_patient_count_as_one():
  rng = np.random.default_rng(0)
  rows = [
    row(p, y) for p, y in zip("aabbcdef", (1, 0, 0, 0, 1, 0, 1, 0), strict=True)
  ]
  logits = rng.normal(size=(8, 3, 2)).astype(np.float32)
  found = task.validation_metrics(rows, logits, loss_fn)
  probs = np.asarray(jax.nn.softmax(logits))[..., 1].mean(1)
  by_patient = [probs[:2].mean(), probs[2:4].mean(), *probs[4:]]
  truth = [1, 0, 1, 0, 1, 0]  # CAD if any of a patient's scans has it.
  assert found["roc_auc"] == pytest.approx(roc_auc_score(truth, by_patient))
  hits = (np.array(by_patient) >= 0.5) == truth
  assert found["accuracy"] == pytest.approx(hits.mean())
  labels = np.repeat([int(each["label"]) for each in rows], 3)
  loss = loss_fn(logits.reshape(-1, 2), labels).mean()
  assert found["loss"] == pytest.approx(float(loss), rel=1e-6)
  assert set(found) == set(task.MONITORS)


def dataset(train, validation):
  rows = {
    "train": [row(str(i), y) for i, y in enumerate(train)],
    "validation": [row(str(i), y) for i, y in enumerate(validation)],
  }
  return types.SimpleNamespace(path="somewhere", rows=rows, shape=(16, 24, 32))


@pytest.mark.parametrize(
  ("train", "validation", "message"),
  [
    ([0, 1], [1, 1], "the validation split has only the label 1"),
    ([], [0, 1], "the train split has no (case|label)"),
  ],
)
def test_both_classes_are_needed(train, validation, message):
  devices = parallel.make_parallel("mesh", data=1)
  config = resnet3d.get_config()
  with pytest.raises(UserError, match=message):
    task.make_task(config, dataset(train, validation), devices)


def test_no_more_slices_than_a_volume_has():
  devices = parallel.make_parallel("mesh", data=1)
  config = resnet2d.get_config()
  config.data.slices_per_volume = 17
  with pytest.raises(UserError, match="= 17; a volume has 16 slices"):
    task.make_task(config, dataset([0, 1], [0, 1]), devices)
