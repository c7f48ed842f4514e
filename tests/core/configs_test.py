"""Configs by name and the meaning of their fields; that they train is tested
by the configs_test.py above."""

import importlib
import re
import subprocess
import sys

import ml_collections
import pytest
from absl import flags

from cadjax.core import configs, lookup

# ml_collections loads files in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)


def test_packaged_configs_and_plans_are_named():
  named = configs.names(configs.CONFIG)
  assert {"demo", "resnet3d", "unet3d"} < set(named)
  assert "__init__" not in named
  plans = configs.names(configs.PLAN)
  assert "dimension" in plans
  assert "common" not in plans  # It has no get_plan.


def test_a_name_is_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "demo").mkdir()  # As `make demo` leaves it: no config.
  assert configs.find(configs.CONFIG, "demo") == configs.FOLDER / "demo.py"
  found = configs.find(configs.PLAN, "dimension")
  assert found == configs.FOLDER / "experiments" / "dimension.py"


def test_a_file_that_exists_wins(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "demo").write_text("")
  assert configs.find(configs.CONFIG, "demo").resolve() == tmp_path / "demo"


@pytest.mark.parametrize(
  ("kind", "name", "message"),
  [
    (configs.CONFIG, "dmo", "unknown config 'dmo'; did you mean 'demo'"),
    (configs.CONFIG, "dimension", "unknown config 'dimension'"),
    (configs.PLAN, "dimenson", "unknown plan .*did you mean 'dimension'"),
    (configs.CONFIG, "configs/own.py", "configs/own.py: no such file.*demo"),
    (configs.CONFIG, "own.py", "own.py: no such file.*by name.*demo"),
    (configs.PLAN, "a/dimension", "a/dimension: no such file"),
  ],
)
def test_what_is_not_there_names_what_is(
  tmp_path, monkeypatch, kind, name, message
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(lookup.ConfigError, match=message):
    configs.find(kind, name)


@pytest.mark.parametrize("name", configs.names(configs.CONFIG))
def test_every_field_of_every_config_has_a_meaning(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  fields = configs.meanings(config, configs.find(configs.CONFIG, name))
  assert len(fields) > 30
  assert not [field for field, meaning in fields if not meaning]


def meanings(tmp_path, monkeypatch, text: str) -> dict[str, str]:
  path = tmp_path / "own.py"
  path.write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  config = importlib.import_module("own").get_config()
  del sys.modules["own"]
  return dict(configs.meanings(config, path))


def test_a_meaning_is_the_comment_beside_a_field_or_above_it(
  tmp_path, monkeypatch
):
  found = meanings(
    tmp_path,
    monkeypatch,
    """
import ml_collections

def get_config():
  c = ml_collections.ConfigDict()
  # Not of beside: this stands above.
  c.beside = 1  # To the right.
  # Above,
  # in two lines.
  c.above = 2

  # Of nothing: an empty line follows.

  c.none = "# In a string."
  c.group = ml_collections.ConfigDict()
  c.group.long = (
    1,
    2,
  )  # At its end.
  return c
""",
  )
  assert found == {
    "beside": "To the right.",
    "above": "Above, in two lines.",
    "none": "",
    "group.long": "At its end.",
  }


def test_a_config_keeps_the_meanings_of_its_base(tmp_path, monkeypatch):
  found = meanings(
    tmp_path,
    monkeypatch,
    """
from configs import demo

def get_config():
  config = demo.get_config()
  with config.unlocked():
    config.epochs = 3  # Why it is 3.
    config.mine = 4  # What it is.
  return config
""",
  )
  assert found["epochs"] == "Largest number of epochs."
  assert found["mine"] == "What it is."


@pytest.fixture
def config_flag():
  configs.define_flag()
  yield flags.FLAGS["config"]
  del flags.FLAGS.config


def test_help_lists_the_fields_with_defaults(config_flag):
  (section,) = configs.describe(["train", "--config", "demo_segmenter", "-h"])
  assert "demo_segmenter" in section.title
  by_name = {one.options[0]: one for one in section.entries}
  assert by_name["--config.epochs"].metavar == "N"
  assert by_name["--config.epochs"].text.endswith("(default: 6)")
  assert "(default: unset)" in by_name["--config.data.fold"].text
  assert "'(48, 48, 48)'" in by_name["--config.data.patch_size"].text
  assert by_name["--config.model.remat"].text.endswith("(default: false)")
  assert by_name["--config.augment"].text.endswith("(default: '{}')")
  assert len(by_name) > 40


def test_help_without_a_config_says_how_to_list_fields(config_flag):
  (section,) = configs.describe(["train", "--help"])
  assert not section.entries
  assert "--config=NAME --help" in section.text


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("def get_config():\n  return 3", "get_config.. returns a int"),
    (
      "def get_config():\n  raise ValueError('no such size')",
      "own.py, line 2: no such size$",
    ),
    ("def get_config():\n  open('nowhere.txt')", "nowhere.txt"),
  ],
)
def test_a_bad_file_is_refused_at_once(tmp_path, config_flag, code, message):
  path = tmp_path / "own.py"
  path.write_text(code)
  with pytest.raises(lookup.ConfigError, match=message):
    config_flag.parser.parse(str(path))


def test_a_config_gets_what_follows_the_colon(tmp_path, config_flag):
  path = tmp_path / "own.py"
  path.write_text(
    "import ml_collections\n"
    "def get_config(arg):\n"
    "  return ml_collections.ConfigDict({'arg': arg})\n"
  )
  assert config_flag.parser.parse(f"{path}:a:b").arg == "a:b"
  assert re.search("^resnet", config_flag.parser.parse("demo:x").model.name)


def test_a_file_that_is_not_python_is_one_line(tmp_path):
  path, workdir = tmp_path / "passwd", tmp_path / "run"
  path.write_text("root:x:0:0\n")
  done = subprocess.run(
    [sys.executable, "-m", "cadjax.main", f"--config={path}"]
    + [f"--workdir={workdir}"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert f"error: flag --config={path}: is not a Python file" in done.stderr
  assert "Traceback" not in done.stderr
  assert not workdir.exists()


def small_config():
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.rates = (0.1, 0.2)
  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 1e-3
  config.optimizer.clip_norm = 1.0
  return config


@pytest.mark.parametrize(
  ("option", "near"),
  [
    ("--config.sed=1", "seed"),
    ("--config.foo=1", ""),
    ("-config.optimizer.learning_rat=1", "optimizer.learning_rate"),
    ("--config.learning_rate=1", "optimizer.learning_rate"),
    ("--config.seed.x=1", "seed"),
    ("--noconfig.clip_norm", "optimizer.clip_norm"),
  ],
)
def test_an_unknown_field_names_the_nearest(option, near):
  with pytest.raises(
    lookup.ConfigError, match=rf"has no field .* is --config\.{near}"
  ):
    configs.check_fields(small_config(), ["program", option])


def test_known_fields_pass():
  configs.check_fields(
    small_config(),
    [
      *("program", "--config=demo", "--config.seed=1", "--config.rates[0]=1"),
      *("--config.optimizer={}", "--workdir=w", "--", "--config.foo=1"),
    ],
  )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["optimizer.clip_norm", "rates"])
def test_numbers_must_be_finite(field, value):
  config = small_config()
  configs.check_finite(config)
  config.update_from_flattened_dict(
    {field: (0.1, value) if field == "rates" else value}
  )
  with pytest.raises(lookup.ConfigError, match=f"config.{field} is .* finite"):
    configs.check_finite(config)
