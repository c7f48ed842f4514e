"""export: phantoms as files, and back through the front door."""

import json

import numpy as np

from data_prep import export, geometry, phantom, sources
from data_prep.ctca import records
from data_prep.volume import read_mask, read_volume


def test_files_hold_the_phantom_and_make_a_source(tmp_path):
  cases = sources.phantom(2, seed=3)
  rows = export.export(
    cases, tmp_path, severity="overt", spacing_mm=4.0, tissues=True
  )
  names = json.loads((tmp_path / "tissues" / "names.json").read_text())
  assert names["1"] == {"name": "aorta", "snomed_ct": "15825003"}
  assert [row["label"] for row in rows] == ["normal", "cad"]
  found = sources.find_cases("manifest", tmp_path)
  assert [c.case_id for c in found] == [c.case_id for c in cases]
  grid = geometry.GridSpec("spacing", spacing_mm=(4, 4, 4))
  for case, drawn in zip(found, cases, strict=True):
    assert sources.problems(case) == []
    assert case.label == drawn.label
    expected = phantom.make_phantom(
      drawn.extra["seed"], label=drawn.label, severity="overt", grid=grid
    )
    volume = read_volume(case.image)
    np.testing.assert_array_equal(volume.hu, expected.volume.hu)
    np.testing.assert_allclose(volume.affine, expected.volume.affine, atol=1e-4)
    mask, known = records.read_classes(case, volume)
    np.testing.assert_array_equal(mask.hu, expected.mask)
    assert np.flatnonzero(known).tolist() == [0, 1, 2, 3, 4]
    tissues = read_mask(tmp_path / "tissues" / f"{case.case_id}.nii.gz")
    np.testing.assert_array_equal(tissues.hu, expected.tissues)
    truth = json.loads((tmp_path / f"{case.case_id}_lesions.json").read_text())
    assert truth["cad_rads"] == expected.cad_rads
    assert len(truth["lesions"]) == len(expected.lesions)
    assert bool(truth["lesions"]) == bool(case.label)
