"""Many scans in turn, without a model."""

import json

from cadjax.core import files
from cadjax.data import jobs as scan_jobs
from data_prep.errors import UserError

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


def test_every_scan_is_read_written_and_told(tmp_path, capsys):
  def read(path, **given):
    return {"path": path.name} | given

  failed = scan_jobs.handle_all(
    jobs(tmp_path, "a", "b"),
    KIND,
    read,
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


def test_a_scan_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
  def read(path, **_):
    if path.name.startswith("a"):
      raise UserError("no scan\nat all")
    return path.name

  failed = scan_jobs.handle_all(
    jobs(tmp_path, "a", "b"), KIND, read, write, lambda job, _: job.case
  )
  assert failed == 1
  told = capsys.readouterr()
  assert told.err == "error: no scan at all\n"
  assert told.out == "b\n"
  assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_in_the_way_is_told_before_the_work(tmp_path, capsys):
  read = []

  def note(path, **_):
    read.append(path)
    return 1

  given = (jobs(tmp_path, "a"), KIND, note, write, lambda job, _: job.case)
  assert scan_jobs.handle_all(*given) == 0
  assert scan_jobs.handle_all(*given) == 1
  assert len(read) == 1
  assert "--overwrite replaces it" in capsys.readouterr().err
  assert scan_jobs.handle_all(*given, overwrite=True) == 0
  assert len(read) == 2
