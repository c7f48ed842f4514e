import json
import pathlib

import pytest

from cadjax.core import files
from cadjax.data import jobs as scan_jobs
from cadjax.data import scans
from data_prep.errors import UserError


def make(root: pathlib.Path, *names: str) -> list[str]:
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
  return [str(root / name) for name in names]


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("Normal_1.nrrd", "Normal_1"),
    ("1.img.nii.gz", "1.img"),
    ("scan.NII.GZ", "scan"),
    ("dicom.folder", "dicom.folder"),
    ("a.dcm", "a"),
    ("a$b^c.nii", "a$b^c"),
    ("a\x1b\n\udce9.nii", "a___"),
  ],
)
def test_a_case_is_named_after_its_file(name, expected):
  assert scans.case_name(pathlib.Path("some/where") / name) == expected


def test_one_plain_input_writes_into_out_itself(tmp_path):
  (job,) = scan_jobs.make_jobs(make(tmp_path, "a.mha"), tmp_path / "out")
  assert (job.case, job.folder) == ("a", tmp_path / "out")


def test_a_wildcard_writes_folders_even_if_it_matches_one(tmp_path):
  make(tmp_path, "a.mha")
  (job,) = scan_jobs.make_jobs([str(tmp_path / "*.mha")], tmp_path / "out")
  assert job.folder == tmp_path / "out" / "a"


def test_many_inputs_come_once_each_in_order(tmp_path):
  make(tmp_path, "b.nii", "a.nii", "c.nrrd")
  given = [str(tmp_path / "c.nrrd"), str(tmp_path / "*.nii")]
  jobs = scan_jobs.make_jobs([*given, given[0]], "out")
  assert [job.case for job in jobs] == ["c", "a", "b"]
  assert [str(job.folder) for job in jobs] == ["out/c", "out/a", "out/b"]


def test_a_wildcard_leaves_out_the_masks_of_what_it_matches(tmp_path, capsys):
  make(tmp_path, "1.nii", "1_mask.nii", "2.nii", "3_seg.nii")
  jobs = scan_jobs.make_jobs([str(tmp_path / "*.nii")], "out")
  # Of no scan that is there, a mask is given to the reader, who refuses it.
  assert [job.case for job in jobs] == ["1", "2", "3_seg"]
  assert "left out 1 named as masks" in capsys.readouterr().err
  (job,) = scan_jobs.make_jobs([str(tmp_path / "1_mask.nii")], "out")
  assert job.case == "1_mask"


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
  paths = make(tmp_path, "Normal/1.nrrd", "Diseased/1.nrrd", "2.nrrd")
  names = [job.case for job in scan_jobs.make_jobs(paths, "out")]
  assert names == ["Normal_1", "Diseased_1", "2"]


def test_names_that_stay_equal_are_numbered(tmp_path):
  paths = make(tmp_path, "x/a/1.nii", "y/a/1.nii", "z/a/1.mha", "a_1-2.nii")
  names = [job.case for job in scan_jobs.make_jobs(paths, "out")]
  assert names == ["a_1", "a_1-3", "a_1-4", "a_1-2"]


def test_links_that_lead_back_are_no_further_scans(tmp_path):
  make(tmp_path, "a/1.nii", "b/2.nii")
  (tmp_path / "a" / "back").symlink_to(tmp_path)
  (tmp_path / "b" / "3.nii").symlink_to("2.nii")
  (tmp_path / "b" / "4.nii").symlink_to("4.nii")
  jobs = scan_jobs.make_jobs([str(tmp_path / "**" / "*.nii")], "out")
  assert [job.case for job in jobs] == ["1", "b_2", "b_2-2", "4"]
  (job,) = scan_jobs.make_jobs([str(tmp_path / "b" / "4.nii")], "out")
  assert job.case == "4"


def test_a_missing_file_is_left_to_its_own_job():
  (job,) = scan_jobs.make_jobs(["nowhere.nii"], "out")
  assert job.path == pathlib.Path("nowhere.nii")


def test_an_existing_name_with_brackets_is_no_wildcard(tmp_path):
  (job,) = scan_jobs.make_jobs(make(tmp_path, "scan[1].nii"), tmp_path / "out")
  assert job.folder == tmp_path / "out"


def test_names_and_masks_given_go_with_the_scans(tmp_path):
  paths = make(tmp_path, "a.nii", "b.nii")
  jobs = scan_jobs.make_jobs(
    paths, "out", cases=["one", "two"], heart_masks=["m1", "m2"]
  )
  assert [(job.case, job.heart_mask) for job in jobs] == [
    ("one", "m1"),
    ("two", "m2"),
  ]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"cases": ["one"]}, "1 of --case for 2 scans"),
    ({"heart_masks": ["m"] * 3}, "3 of --heart_mask for 2 scans"),
    ({"cases": ["one", "one"]}, "two of --case are the same"),
    ({"cases": ["one", "../two"]}, "cannot be the name of a folder"),
    ({"cases": ["one", ".."]}, "cannot be the name of a folder"),
    ({"cases": ["one", "a\x1b"]}, "cannot be the name of a folder"),
    ({"cases": ["one", "a\udce9"]}, "cannot be the name of a folder"),
  ],
)
def test_what_does_not_fit_is_told(tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    scan_jobs.make_jobs(make(tmp_path, "a.nii", "b.nii"), "out", **options)


def test_a_wildcard_without_match_is_told(tmp_path):
  with pytest.raises(UserError, match="matches no file"):
    scan_jobs.make_jobs([str(tmp_path / "*.nii")], "out")


# --- Many scans in turn, without a model ---

KIND = files.ResultFolder("one.json", "test/")


def jobs(folder, *names):
  return [
    scan_jobs.Job(name, folder / f"{name}.nii.gz", folder / name, f"{name}.mha")
    for name in names
  ]


def write(result, folder, *, overwrite):
  with KIND.writing(folder, overwrite=overwrite) as made:
    document = {"schema": "test/1", "files": {"result": "one.json"}}
    (made / "one.json").write_text(json.dumps(document | {"found": result}))
  return document


@pytest.fixture
def read(monkeypatch):
  """Replaces reading: a scan is what it would be read from."""
  calls = []

  def fake(path, **given):
    calls.append(path)
    if path.name.startswith("bad"):
      raise UserError("no scan\nat all")
    return {"path": path.name} | given

  monkeypatch.setattr(scans, "read_scan", fake)
  return calls


def same(_, scan):
  return scan


def test_every_scan_is_read_written_and_described(read, tmp_path, capsys):
  failed = scan_jobs.run_jobs(
    jobs(tmp_path, "a", "b"),
    KIND,
    same,
    write,
    lambda job, result: f"{job.case}: {result['path']}",
    series="2",
  )
  assert failed == 0
  assert capsys.readouterr().out == "a: a.nii.gz\nb: b.nii.gz\n"
  found = json.loads((tmp_path / "b" / "one.json").read_text())["found"]
  assert found == {
    "path": "b.nii.gz", "case": "b", "series": "2", "heart_mask": "b.mha"
  }  # fmt: skip


def test_a_scan_that_fails_does_not_stop_the_others(read, tmp_path, capsys):
  failed = scan_jobs.run_jobs(
    jobs(tmp_path, "bad", "b"), KIND, same, write, lambda job, _: job.case
  )
  assert failed == 1
  told = capsys.readouterr()
  assert told.err == "error: no scan at all\n"
  assert told.out == "b\n"
  assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_in_the_way_is_seen_before_the_work(read, tmp_path, capsys):
  given = (jobs(tmp_path, "a"), KIND, same, write, lambda job, _: job.case)
  assert scan_jobs.run_jobs(*given) == 0
  assert scan_jobs.run_jobs(*given) == 1
  assert len(read) == 1
  assert "--overwrite replaces it" in capsys.readouterr().err
  assert scan_jobs.run_jobs(*given, overwrite=True) == 0
  assert len(read) == 2
