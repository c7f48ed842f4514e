"""Finding cases: the published layouts, and what users make of them."""

import os
import pathlib
import zipfile

import pytest

from data_prep import sources
from data_prep.errors import UserError


def tree(root, names):
  """Makes empty files; finding cases reads no image."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return root


def write(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(lines) + "\n")
  return path


def write_xlsx(path, rows):
  """A minimal workbook: shared strings, numbers, gaps for empty cells."""
  strings = [c for row in rows for c in row if not c.isdigit()]
  cells = []
  for r, row in enumerate(rows, start=1):
    cells.append(f'<row r="{r}">')
    for column, cell in zip("ABCDEFG", row, strict=False):
      if cell.isdigit():
        cells.append(f'<c r="{column}{r}"><v>{cell}.0</v></c>')
      elif cell:
        index = strings.index(cell)
        cells.append(f'<c r="{column}{r}" t="s"><v>{index}</v></c>')
    cells.append("</row>")
  ns = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
  shared = "".join(f"<si><t>{s}</t></si>" for s in strings)
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("xl/sharedStrings.xml", f"<sst {ns}>{shared}</sst>")
    file.writestr(
      "xl/worksheets/sheet1.xml",
      f"<worksheet {ns}><sheetData>{''.join(cells)}</sheetData></worksheet>",
    )
  return path


def brief(cases, root):
  """Case id -> (image, mask), relative to the root."""
  short = lambda p: p and p.relative_to(root).as_posix()  # noqa: E731
  return {c.case_id: (short(c.image), short(c.mask)) for c in cases}


IMAGECAS = {
  "published": ("1-200/2.img.nii.gz", "1-200/2.label.nii.gz"),
  "last hundreds": ("801-1000/2.img.nii.gz", "801-1000/2.label.nii.gz"),
  "folder a case": ("2/2.img.nii.gz", "2/2.label.nii.gz"),
  "folder a case, bare names": ("2/img.nii.gz", "2/label.nii.gz"),
  "image and label folders": ("images/2.nii.gz", "labels/2.nii.gz"),
  "nnU-Net": ("imagesTr/2_0000.nii.gz", "labelsTr/2.nii.gz"),
  "unpacked and renamed": ("data/2_img.nii", "data/2_label.nii"),
  "upper case": ("Images/2.NII.GZ", "Masks/2.NII.GZ"),
}


@pytest.mark.parametrize("names", IMAGECAS.values(), ids=IMAGECAS)
def test_imagecas_layouts(tmp_path, names):
  tree(tmp_path, [*names, "readme.txt", ".cache/9.img.nii.gz"])
  cases = sources.find_cases("imagecas", tmp_path)
  assert brief(cases, tmp_path) == {"2": names}
  assert cases[0].label is None
  assert cases[0].split is None
  assert cases[0].extra == {"mask_classes": {1: 2}, "known": (2,)}


def test_imagecas_split_table_csv_beside_the_xlsx(tmp_path):
  tree(
    tmp_path,
    [f"1-200/{i}.{k}.nii.gz" for i in (1, 2, 10) for k in ("img", "label")],
  )
  header = ["FileName", "Split-1", "Split-2"]
  write_xlsx(
    tmp_path / "imageCAS_data_split-20220412.xlsx",
    [header, ["10052435", "Training", "Val"]],
  )
  write(
    tmp_path / "imageCAS_data_split.csv",
    "\ufeffFileName,Split-1,Split-2",
    "1,Training,Testing",
    "2,Val,Training",
    "10,Testing,Val",
    "11,Testing,Val",
  )
  cases = sources.find_cases("imagecas", tmp_path)
  assert [c.case_id for c in cases] == ["1", "2", "10"]
  assert [c.split for c in cases] == ["train", "validation", "test"]
  cases = sources.find_cases("imagecas", tmp_path, split_column="Split-2")
  assert [c.split for c in cases] == ["test", "train", "validation"]
  cases = sources.find_cases("imagecas", tmp_path, given_splits=False)
  assert [c.split for c in cases] == [None] * 3
  with pytest.raises(UserError, match="lacks the column.* split_9"):
    sources.find_cases("imagecas", tmp_path, split_column="Split-9")


def test_an_imagecas_case_in_two_splits_is_told(tmp_path):
  tree(tmp_path, ["1-200/1.img.nii.gz", "1-200/1.label.nii.gz"])
  rows = ["FileName,Split-1", "1,Training", "1,Train"]
  table = write(tmp_path / "split.csv", *rows)
  (case,) = sources.find_cases("imagecas", tmp_path)
  assert case.split == "train"
  write(table, *rows, "1,Testing")
  with pytest.raises(UserError, match="split.csv: gives case 1 twice, .*test"):
    sources.find_cases("imagecas", tmp_path)


@pytest.mark.parametrize(
  "stray",
  ["1-200/3.denoised.nii.gz", "3.vessel.nii.gz", "denoised/denoised_3.nii.gz"],
)
@pytest.mark.parametrize("source", ["imagecas", "imagecas_x"])
@pytest.mark.parametrize("before", ["", "ImageCAS_"])
def test_a_file_of_another_kind_is_no_patient(tmp_path, source, stray, before):
  names = [
    f"1-200/{before}{number}.{role}.nii.gz"
    for number in (3, 4)
    for role in ("img", "label")
  ]
  tree(tmp_path, names)
  cases = sources.find_cases(source, tmp_path)
  assert [c.case_id for c in cases] == [f"{before}3", f"{before}4"]
  tree(tmp_path, [stray])
  with pytest.raises(UserError, match=f"{stray}: what its name leaves"):
    sources.find_cases(source, tmp_path)


def test_a_case_of_images_that_are_all_misnamed_is_told(tmp_path):
  tree(tmp_path, ["3.denoised.nii.gz"])
  with pytest.raises(UserError, match="'3.denoised', is not a number"):
    sources.find_cases("imagecas", tmp_path)


def test_imagecas_old_ids_of_the_xlsx_are_told(tmp_path):
  tree(tmp_path, ["1-200/1.img.nii.gz", "1-200/1.label.nii.gz"])
  write_xlsx(
    tmp_path / "imageCAS_data_split.xlsx",
    [["FileName", "Split-1"], ["10052435", "Training"]],
  )
  with pytest.raises(UserError, match="no row for case 1 .*10052435"):
    sources.find_cases("imagecas", tmp_path)


def imagecas_x(root):
  ids = [1, 2, 3, 4, 5]
  names = [f"volumes/{i}.img.nii.gz" for i in ids]
  names += [f"segmentations/{i}.coronary.nii.gz" for i in ids[:4]]
  tree(root, names)
  write(root / "filelist" / "train.txt", "1", "2")
  write(root / "filelist" / "val.txt", "3.img.nii.gz")
  write(root / "filelist" / "test.txt", "4")
  write(root / "filelist" / "exclude.txt", "5")
  return root


def test_imagecas_x(tmp_path):
  imagecas_x(tmp_path)
  write_xlsx(
    tmp_path / "Descriptors.xlsx",
    [
      ["Scan ID", "Image Quality", "Dominance", "Disease"],
      ["1", "", "Right", "Normal"],
      ["2", "4", "Left", "Diseased"],
      ["3", "3", "Right", "1"],
      ["4", "3", "Right", "0"],
      ["5", "3", "Right", "1"],
    ],
  )
  cases = sources.find_cases("imagecas_x", tmp_path)
  assert brief(cases, tmp_path) == {
    str(i): (
      f"volumes/{i}.img.nii.gz",
      f"segmentations/{i}.coronary.nii.gz",
    )
    for i in (1, 2, 3, 4)
  }
  assert [c.split for c in cases] == ["train", "train", "validation", "test"]
  assert [c.label for c in cases] == [0, 1, 1, 0]
  assert cases[0].extra["mask_classes"] == {i: 2 for i in range(1, 15)}


def test_imagecas_x_patient_in_two_lists(tmp_path):
  imagecas_x(tmp_path)
  write(tmp_path / "filelist" / "test.txt", "4", "2")
  with pytest.raises(
    UserError, match="patient 2 is in two splits, .*(train|test)"
  ):
    sources.find_cases("imagecas_x", tmp_path)


def test_imagecas_x_two_diseases_of_a_scan(tmp_path):
  imagecas_x(tmp_path)
  rows = ["Scan ID,Disease", "1,Normal", "1,0", "2,1"]
  table = write(tmp_path / "Descriptors.csv", *rows)
  assert sources.find_cases("imagecas_x", tmp_path)[0].label == 0
  write(table, *rows, "1,Diseased")
  with pytest.raises(UserError, match="gives case 1 twice, with 0 and with 1"):
    sources.find_cases("imagecas_x", tmp_path)


def test_imagecas_x_unknown_disease(tmp_path):
  imagecas_x(tmp_path)
  write(tmp_path / "Descriptors.csv", "Scan ID;Disease", "1;perhaps")
  with pytest.raises(UserError, match="Descriptors.csv: .*'perhaps'"):
    sources.find_cases("imagecas_x", tmp_path)


ASOCA = {
  "published": "{g}/{role}/{g}_{n}.nrrd",
  "numbers alone": "{g}/{role}/{n}.nrrd",
  "converted": "ASOCA/{g}/{role}/{g}_{n}.nii.gz",
  "role first": "{role}/{g}/{g}_{n}.nrrd",
  "flat": "{role}/{g}_{n}.nrrd",
}


@pytest.mark.parametrize("layout", ASOCA.values(), ids=ASOCA)
def test_asoca_layouts(tmp_path, layout):
  names = {
    (g, n): tuple(
      layout.format(g=g, n=n, role=role) for role in ("CTCA", "Annotations")
    )
    for g in ("Normal", "Diseased")
    for n in (1, 2)
  }
  tree(tmp_path, [name for pair in names.values() for name in pair])
  cases = sources.find_cases("asoca", tmp_path)
  assert brief(cases, tmp_path) == {
    f"{g}_{n}": pair for (g, n), pair in names.items()
  }
  assert {c.case_id: c.label for c in cases} == {
    "Normal_1": 0,
    "Normal_2": 0,
    "Diseased_1": 1,
    "Diseased_2": 1,
  }


def test_asoca_challenge_takes_labels_from_a_table_alone(tmp_path):
  tree(
    tmp_path,
    [
      f"{folder}/{n}.nrrd"
      for folder in ("Train", "Train_Masks")
      for n in (0, 1)
    ],
  )
  cases = sources.find_cases("asoca", tmp_path)
  assert brief(cases, tmp_path) == {
    "0": ("Train/0.nrrd", "Train_Masks/0.nrrd"),
    "1": ("Train/1.nrrd", "Train_Masks/1.nrrd"),
  }
  assert [c.label for c in cases] == [None, None]
  table = write(tmp_path / "labels.csv", "Case ID,label", "0,normal", "1,CAD")
  cases = sources.find_cases("asoca", tmp_path, labels=table)
  assert [c.label for c in cases] == [0, 1]
  assert [c.patient_id for c in cases] == ["0", "1"]
  table = write(
    tmp_path / "more.csv",
    "case_id\tlabel\tpatient_id\tsplit",
    "0\t0\tp7\ttrain",
    "1\t1\tp7\tval",
  )
  cases = sources.find_cases("asoca", tmp_path, labels=table)
  assert [(c.patient_id, c.split) for c in cases] == [
    ("p7", "train"),
    ("p7", "validation"),
  ]


def test_repeated_rows_of_a_label_table_must_agree(tmp_path):
  data = tree(tmp_path / "d", ["Train/0.nrrd", "Train/1.nrrd"])
  # Other cases than those of the folder do not matter.
  rows = ["case_id,label", "0,normal", "1,cad", "0,0", "9,cad", "9,perhaps"]
  table = write(tmp_path / "labels.csv", *rows)
  cases = sources.find_cases("asoca", data, labels=table)
  assert [c.label for c in cases] == [0, 1]
  write(table, *rows, "0,cad")
  with pytest.raises(UserError, match="labels.csv: gives case 0 twice"):
    sources.find_cases("asoca", data, labels=table)


@pytest.mark.parametrize(
  "stray",
  [
    "ct_train/ct_train_1001_denoised.nii.gz",
    "ct_test_2001_label_encrypt_1mm.nii.gz",
    "mr_scan.nii.gz",
  ],
)
def test_a_file_that_is_not_of_mmwhs_is_told(tmp_path, stray):
  tree(tmp_path, ["ct_train/CT_train_1001_image.nii.gz"])
  (case,) = sources.find_cases("mmwhs", tmp_path)
  assert case.patient_id == "1001"
  tree(tmp_path, [stray])
  with pytest.raises(UserError, match=f"{stray}: .*of the kind ct_train_1001"):
    sources.find_cases("mmwhs", tmp_path)


def test_mmwhs(tmp_path):
  tree(
    tmp_path,
    [
      "ct_train/ct_train_1001_image.nii.gz",
      "ct_train/ct_train_1001_label.nii.gz",
      "ct_test/ct_test_2001_image.nii.gz",
      "mr_train/mr_train_1001_image.nii.gz",
      "mr_train/mr_train_1001_label.nii.gz",
    ],
  )
  cases = sources.find_cases("mmwhs", tmp_path)
  assert brief(cases, tmp_path) == {
    "ct_test_2001": ("ct_test/ct_test_2001_image.nii.gz", None),
    "ct_train_1001": (
      "ct_train/ct_train_1001_image.nii.gz",
      "ct_train/ct_train_1001_label.nii.gz",
    ),
  }
  assert [c.patient_id for c in cases] == ["2001", "1001"]
  mapping = cases[0].extra["mask_classes"]
  assert mapping[820] == sources.CLASS_NAMES.index("aorta")
  assert {v for k, v in mapping.items() if k != 820} == {0}
  assert cases[0].extra["known"] == (1,)
  # The test scan has no mask, so there is nothing to say of its aorta.
  assert "notes" not in cases[0].extra
  assert "ascending aorta alone" in cases[1].extra["notes"][0]


def test_cca_with_one_split_leaves_splits_open(tmp_path):
  tree(tmp_path, ["train/images/7.nii.gz", "train/labels/7.nii.gz"])
  cases = sources.find_cases("cca", tmp_path)
  assert brief(cases, tmp_path) == {
    "7": ("train/images/7.nii.gz", "train/labels/7.nii.gz")
  }
  assert cases[0].split is None


def test_cca_with_several_splits_keeps_them(tmp_path):
  tree(
    tmp_path,
    [
      f"{split}/{role}/{n}.nii.gz"
      for split, n in (("train", 1), ("val", 1), ("test", 2))
      for role in ("images", "labels")
    ],
  )
  cases = sources.find_cases("cca", tmp_path)
  # 1 occurs in two splits and so is told apart; 2 keeps its name.
  assert {c.case_id: c.split for c in cases} == {
    "train_1": "train",
    "validation_1": "validation",
    "2": "test",
  }


HEADER = "case_id,patient_id,image,label,mask,aorta_mask,split,mask_classes"


def test_manifest(tmp_path):
  table = write(
    tmp_path / "manifest.csv",
    HEADER,
    "a,p1,scans/a.nrrd,normal,masks/a.nrrd,,train,lumen stable_plaque",
    "b,p2,scans/b_dicom,CAD,,aorta/b.nii.gz,Val,",
    "",
    "c,p3,/elsewhere/c.mha,,,,test,",
  )
  for given in (tmp_path, table):
    a, b, c = sources.find_cases("manifest", given)
    assert (a.case_id, a.patient_id, a.label, a.split) == (
      "a",
      "p1",
      0,
      "train",
    )
    assert a.image == tmp_path / "scans" / "a.nrrd"
    assert a.mask == tmp_path / "masks" / "a.nrrd"
    assert a.extra["known"] == (2, 3)
    assert (b.label, b.split, b.mask) == (1, "validation", None)
    assert b.aorta_mask == tmp_path / "aorta" / "b.nii.gz"
    assert b.extra["known"] == (1, 2, 3, 4)
    assert (c.label, c.image) == (None, pathlib.Path("/elsewhere/c.mha"))
  assert sources.problems(a) == [
    f"{tmp_path}/scans/a.nrrd: no such file",
    f"{tmp_path}/masks/a.nrrd: no such file",
  ]


SHORT = "case_id,patient_id,image,label"
BAD_MANIFESTS = {
  "no table": ([], "manifest.csv: no such file"),
  "empty": ([""], "the table is empty"),
  "no rows": ([SHORT], "no case of manifest found"),
  "missing columns": (
    ["case_id,image", "a,a.nii"],
    r"manifest.csv: lacks the column\(s\) patient_id, label; it has case_id",
  ),
  "repeated id": (
    [SHORT, "a,p,a.nii,0", "a,q,b.nii,1"],
    "case id a is given twice, to .*a.nii and to .*b.nii",
  ),
  "unknown label": (
    [SHORT, "a,p,a.nii,0", "b,p,b.nii,maybe"],
    "manifest.csv row 3: unknown label 'maybe'",
  ),
  "no patient": ([SHORT, "a,,a.nii,0"], "row 2: patient_id is empty"),
  "one class": (
    [SHORT, "a,p,a.nii,1", "b,q,b.nii,cad"],
    "every label is cad; a classifier needs both",
  ),
  "unknown split": (
    [SHORT + ",split", "a,p,a.nii,1,holdout"],
    "row 2: unknown split 'holdout'",
  ),
  "unknown class": (
    [SHORT + ",mask_classes", "a,p,a.nii,1,vein"],
    "unknown mask class 'vein'",
  ),
}


@pytest.mark.parametrize(
  ("lines", "message"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS
)
def test_bad_manifests_are_one_message(tmp_path, lines, message):
  if lines:
    write(tmp_path / "manifest.csv", *lines)
  with pytest.raises(UserError, match=message):
    sources.find_cases("manifest", tmp_path)


@pytest.mark.parametrize(
  "names",
  [
    ["case7/aorta.nii.gz", "case7/heart.nii.gz", "case8/aorta.nii.gz"],
    ["case7.nii.gz", "case9.nii.gz"],
    ["case7_aorta.nrrd"],
    ["case7.aorta_mask.nii.gz"],
  ],
)
def test_second_mask_brings_the_aorta(tmp_path, names):
  data = tree(
    tmp_path / "d",
    ["images/case7.nii.gz", "labels/case7.nii.gz", "images/case10.nii.gz"],
  )
  aortas = tree(tmp_path / "aortas", names)
  case7, case10 = sources.find_cases("imagecas", data, aorta_masks=aortas)
  assert case7.aorta_mask == aortas / names[0]
  assert case7.mask == data / "labels" / "case7.nii.gz"
  assert case10.aorta_mask is None


def test_aorta_masks_of_other_cases_are_told(tmp_path):
  data = tree(tmp_path / "d", ["images/7.nii.gz"])
  aortas = tree(tmp_path / "aortas", ["8.nii.gz"])
  with pytest.raises(UserError, match="no aorta mask carries the id"):
    sources.find_cases("imagecas", data, aorta_masks=aortas)


def test_two_files_for_one_role_are_told(tmp_path):
  tree(tmp_path, ["1-200/1.img.nii.gz", "copy/1.img.nii"])
  with pytest.raises(
    UserError, match="two image files for case 1: .*1.img.nii.gz and .*copy"
  ):
    sources.find_cases("imagecas", tmp_path)


def test_a_mask_without_image_is_a_problem_of_its_case(tmp_path):
  tree(tmp_path, ["1-200/1.label.nii.gz"])
  (case,) = sources.find_cases("imagecas", tmp_path)
  assert sources.problems(case) == [
    f"{tmp_path}/1-200/1.label.nii.gz: no image goes with this mask"
  ]


def test_a_link_to_a_folder_above_is_followed_once(tmp_path):
  tree(tmp_path, ["1.img.nii.gz", "1.label.nii.gz", "deep/2.img.nii.gz"])
  (tmp_path / "deep" / "back").symlink_to(tmp_path)
  cases = sources.find_cases("imagecas", tmp_path)
  assert [case.case_id for case in cases] == ["1", "2"]


@pytest.mark.parametrize("kind", ["pipe", "bytes"])
def test_a_list_of_cases_that_is_no_text(tmp_path, kind):
  imagecas_x(tmp_path)
  (path,) = tmp_path.rglob("train.txt")
  path.unlink()
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.write_bytes(b"\xff\xfe")
  with pytest.raises(UserError, match="train.txt: .*read"):
    sources.find_cases("imagecas_x", tmp_path)


def test_a_scan_is_no_manifest(tmp_path):
  path = write(tmp_path / "a.nii.gz", "x" * 1000)
  with pytest.raises(UserError, match="is a scan; --input is the folder"):
    sources.find_cases("manifest", path)
  path = write(tmp_path / "a.bin", "x" * 1000)
  with pytest.raises(UserError, match="lacks the column") as error:
    sources.find_cases("manifest", path)
  assert len(str(error.value)) < 900


def test_empty_and_missing_folders_and_sources(tmp_path):
  with pytest.raises(UserError, match="no case of mmwhs found; expected ct_"):
    sources.find_cases("mmwhs", tmp_path)
  with pytest.raises(UserError, match="no such folder"):
    sources.find_cases("mmwhs", tmp_path / "x")
  with pytest.raises(UserError, match="unknown source 'nope'; known are"):
    sources.find_cases("nope", tmp_path)


def test_labels_of_other_cases_are_told(tmp_path):
  tree(tmp_path, ["Train/0.nrrd"])
  table = write(tmp_path / "labels.csv", "case_id,label", "x,1")
  with pytest.raises(UserError, match="has x, the files have 0"):
    sources.find_cases("asoca", tmp_path, labels=table)


def test_unreadable_xlsx_says_save_as_csv(tmp_path):
  tree(tmp_path, ["1-200/1.img.nii.gz"])
  write(tmp_path / "data_split.xlsx", "not a workbook")
  with pytest.raises(UserError, match="save the table as csv"):
    sources.find_cases("imagecas", tmp_path)


def test_phantom_cases():
  cases = sources.phantom(10, seed=2)
  assert [c.label for c in cases] == [0, 1] * 5
  assert cases[3].extra["seed"] == 2_000_003
  seeds = {c.extra["seed"] for s in (0, 1) for c in sources.phantom(99, seed=s)}
  assert len(seeds) == 198
  few = sources.phantom(20, cad_fraction=0.25)
  assert sum(c.label for c in few) == 5
  assert sum(c.label for c in few[:8]) == 2
  with pytest.raises(UserError, match="got 0, 0 and 0.5"):
    sources.phantom(0)
