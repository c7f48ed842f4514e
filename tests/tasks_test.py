"""A config and a workdir say which kind of training they are."""

import pytest
from tiny_runs import STEP, segmenter_config, write_workdir

from cadjax import tasks
from cadjax.classification.classifier import Classifier
from cadjax.core import lookup
from cadjax.segmentation.segmenter import Segmenter
from configs import resnet3d


def test_a_kind_is_found_by_the_task_of_the_config():
  for config in (resnet3d.get_config(), segmenter_config()):
    assert tasks.find(config).task == config.task
    assert config.monitor in tasks.find(config).monitors
  assert set(tasks.KINDS) == {"classify", "segment"}


def test_an_unknown_task_is_refused():
  config = resnet3d.get_config()
  config.task = "clasify"
  with pytest.raises(lookup.UnknownName, match="did you mean 'classify'"):
    tasks.find(config)


@pytest.mark.parametrize(
  ("make", "kind"),
  [(resnet3d.get_config, Classifier), (segmenter_config, Segmenter)],
)
def test_a_workdir_is_loaded_as_what_it_was_trained_for(make, kind, tmp_path):
  config = make()
  if config.task == "classify":
    config.model.update(depth=10, width=4)
  model = tasks.load_model(write_workdir(tmp_path / "run", config=config))
  assert type(model) is kind
  assert (model.task, model.step) == (config.task, STEP)
