import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from cadjax.metrics import intervals
from cadjax.report import curves

FIGURES = {
  "roc": lambda scores, **words: curves.roc_figure([scores], **words),
  "pr": lambda scores, **words: curves.pr_figure([scores], **words),
  "calibration": curves.calibration_figure,
  "confusion": curves.confusion_figure,
}


def scores(labels, probs, threshold=0.45, name="by patient"):
  labels, probs = np.asarray(labels), np.asarray(probs, float)
  result = intervals.with_intervals(labels, probs, threshold, draws=50)
  return curves.Scores(name, "patients", labels, probs, threshold, result)


def sample(n=20, seed=0, **options):
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % 2
  return scores(labels, (rng.random(n) + 0.5 * labels) / 1.5, **options)


def words(figure):
  return "\n".join(
    text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text"))
  )


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
  "data",
  [
    sample(),
    scores([0] * 7 + [1] * 7, np.linspace(0, 1, 14)),
    scores([1, 1, 1], [0.2, 0.6, 0.9]),
    scores([0, 0], [0.2, 0.3]),
    scores([0, 1, 0, 1], [0.3] * 4),
    scores([0, 1, 1], [0.1, 0.2, 0.3]),
  ],
  ids=["usual", "perfect", "only CAD", "only normal", "equal", "none called"],
)
def test_every_figure_is_drawn_in_every_situation(tmp_path, name, data):
  figure = FIGURES[name](data, title="test", footer="not a medical device")
  path = tmp_path / f"{name}.png"
  curves.save(figure, path)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
  with Image.open(path) as image:
    pixels = np.asarray(image.convert("L"))
  assert pixels.shape[0] > 600
  assert 0.001 < (pixels < 128).mean() < 0.5
  assert "not a medical device" in words(figure)


def test_figures_name_the_number_of_patients_and_the_interval():
  data = sample()
  keys = {"roc": "roc_auc", "pr": "pr_auc", "calibration": "calibration_slope"}
  for name, key in keys.items():
    text = words(FIGURES[name](data))
    assert "20 patients, 10 with CAD" in text, name
    assert data.metrics[key].text(2) in text, name


def test_roc_and_pr_lines_have_the_area_of_sklearn():
  data = sample(31)
  roc = curves.roc_figure([data]).axes[0].lines[1]
  area = np.trapezoid(roc.get_ydata(), roc.get_xdata())
  auc = sklearn.metrics.roc_auc_score(data.labels, data.probs)
  assert area == pytest.approx(auc)
  pr = curves.pr_figure([data]).axes[0].lines[0]
  recall, precision = pr.get_xdata(), pr.get_ydata()
  steps = -(np.diff(recall) * precision[:-1]).sum()
  expected = sklearn.metrics.average_precision_score(data.labels, data.probs)
  assert steps == pytest.approx(expected)


def test_roc_marks_the_operating_point():
  data = sample(threshold=0.6)
  called = data.probs >= data.threshold
  mark = curves.roc_figure([data]).axes[0].lines[2]
  assert mark.get_xdata() == [called[data.labels == 0].mean()]
  assert mark.get_ydata() == [called[data.labels == 1].mean()]


def test_roc_band_holds_the_curve_and_lies_in_the_unit_square():
  data = sample(60)
  grid = np.linspace(0, 1, 101)
  low, high = curves._roc_band(data, grid)
  fpr, tpr, _ = sklearn.metrics.roc_curve(data.labels, data.probs)
  curve = np.interp(grid, fpr, tpr)
  assert (low <= curve + 1e-9).mean() > 0.95
  assert (high >= curve - 1e-9).mean() > 0.95
  assert low.min() >= 0
  assert high.max() <= 1
  assert (high - low).max() > 0.1


def test_confusion_shows_the_counts_at_their_places():
  labels = [0] * 5 + [1] * 4
  probs = [0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1]
  axes = curves.confusion_figure(scores(labels, probs)).axes[0]
  shown = {t.get_position(): t.get_text() for t in axes.texts}
  assert shown == {
    (0, 0): "3\n60%",
    (1, 0): "2\n40%",
    (0, 1): "1\n25%",
    (1, 1): "3\n75%",
  }


def test_several_lines_share_one_figure():
  pair = [sample(), sample(seed=1, name="by slice")]
  text = words(curves.roc_figure(pair))
  assert "by patient" in text
  assert "by slice" in text
