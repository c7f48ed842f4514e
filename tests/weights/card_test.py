"""The card of a segmenter that was evaluated."""

from cadjax.weights import card

MODEL = {"name": "unet", "ndim": 3, "features": [8, 16]}
ABOUT = {
  "name": "two",
  "step": 3,
  "config": {
    "task": "segment",
    "seed": 5,
    "segment": {"classes": "four"},
    "model": MODEL,
    "data": {"window_hu": [-200, 800]},
  },
  "dataset": {
    "source": "phantom",
    "fingerprint": "abc",
    "grid": {
      "kind": "spacing", "shape": [8, 8, 8], "box_mm": [1, 1, 1],
      "spacing_mm": [2.0, 2.0, 2.0],
    },
    "cases": {"train": 40, "test": 9},
    "metadata": {
      "severity": "overt", "edition": 2, "scanner": {}, "seed": 0,
      "population": {"heart_scale": 1.1}, "fractions": [0.8, 0.1, 0.1],
    },
  },
  "versions": {"cadjax": "9.9", "git": None, "devices": ["cpu", "cpu"]},
}  # fmt: skip


def entry(value):
  return {
    "value": value, "low": value - 0.1, "high": None, "method": "t", "k": None,
    "n": 9,
  }  # fmt: skip


def test_every_class_has_its_figures():
  evaluation = {
    "split": "test",
    "n_patients": 9,
    "patient": {
      "aorta": {
        name: entry(number)
        for number, name in enumerate(card.SEGMENTER, start=1)
      },
    },
    "lesions": {"recall": entry(0.5)},
  }
  text = card.render(ABOUT, evaluation, size=2_000_000)
  assert "| class | Dice | recall | precision | HD95, mm |" in text
  line = next(x for x in text.splitlines() if x.startswith("| aorta |"))
  cells = line.split(" | ")
  assert [cell[:5] for cell in cells[1:]] == [
    "1.000",
    "2.000",
    "3.000",
    "4.000",
  ]
  assert "| lesion recall | 0.500" in text
  assert "9 patients (phantoms)" in text
  assert "was not measured" in text


def test_data_and_model_are_in_words():
  text = card.render(ABOUT, None, size=2_000_000)
  for line in (
    "| finds | aorta, lumen, stable plaque, unstable plaque |",
    "| input | the whole field of view at 2 x 2 x 2 mm |",
    "| window | -200 to 800 HU |",
    "| file | 2.0 MB, format cadjax.weights/1 |",
    "| cases | 40 train, 9 test |",
    "| edition | 2 |",
    "| seed | 0 |",
    "| population | heart_scale 1.1 |",
    "| fractions | 0.8, 0.1, 0.1 |",
    "| seed of the training | 5 |",
    "| versions | cadjax 9.9 |",
    "| devices | cpu |",
  ):
    assert line in text.splitlines(), line
  assert "scanner" not in text


def test_what_was_trained_on_patients_is_not_called_phantoms():
  dataset = ABOUT["dataset"] | {"source": "asoca"}
  text = card.render(ABOUT | {"dataset": dataset}, None, size=1)
  assert "hantom" not in text
  assert card.data_words(ABOUT | {"dataset": dataset}) == "40 of asoca"
  assert card.data_words(ABOUT) == "40 phantoms"
