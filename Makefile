# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DEMO := demo

.PHONY: help env demo test test-slow test-colab test-latest fuzz bench \
  bench-tpu weights lint clean experiments experiments-clinical \
  experiments-smoke

help:
	@echo "make demo       environment, a linked report, trainings, evaluation, another"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow ones: kills and resumes, paper scale"
	@echo "make test-colab   Colab's versions: parallel, training, evaluation, explanation, notebooks"
	@echo "make test-latest  the fast tests with the newest jax, flax, optax, orbax, grain, TFDS"
	@echo "make fuzz       damages files at random; counts what the readers do"
	@echo "make bench      times training and inference beside PyTorch's, in bench/"
	@echo "make bench-tpu  compiles for a TPU that is not there, in bench/tpu"
	@echo "make experiments        the paper's questions on phantoms: hours"
	@echo "make experiments-clinical  the same at the severity of a clinic"
	@echo "make experiments-smoke  every plan at a tiny size"
	@echo "make weights    trains the models in cadjax/weights again: hours"
	@echo "make lint       ruff"
	@echo "make clean      removes demo/, bench/ and experiments/"

env: $(READY)

$(READY): setup.py pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

# Stamps: a folder is there before it is whole, and --overwrite mends it.
$(DEMO)/data/.ready: | $(READY)
	$(PY) -m data_prep.build --source=phantom --severity=overt --cases=400 \
	  --grid=heart --shape=64,64,64 --box_mm=128,128,128 --overwrite --out=$(@D)
	touch $@

$(DEMO)/masks/.ready: | $(READY)
	$(PY) -m data_prep.build --source=phantom --severity=overt --cases=80 \
	  --grid=heart --shape=96,96,96 --box_mm=128,128,128 --overwrite --out=$(@D)
	touch $@

$(DEMO)/scans/.ready: | $(READY)
	$(PY) -m data_prep.export --out=$(@D) --cases=2 --severity=overt \
	  --spacing_mm=1
	touch $@

# A report of the models that come with cadjax, minutes before the others.
$(DEMO)/case/.ready: | $(DEMO)/scans/.ready
	$(PY) -m cadjax.predict --overwrite --out=$(@D) \
	  --input=$(DEMO)/scans/phantom_1000001.nii.gz
	@echo "open $(@D)/report.html; the models of the demo itself follow"
	touch $@

demo: $(READY) | $(DEMO)/case/.ready $(DEMO)/data/.ready $(DEMO)/masks/.ready
	$(PY) -m cadjax.main --config=configs/demo.py --workdir=$(DEMO)/classifier
	$(PY) -m cadjax.evaluate --workdir=$(DEMO)/classifier
	$(PY) -m cadjax.main --config=configs/demo_segmenter.py \
	  --workdir=$(DEMO)/segmenter
	$(PY) -m cadjax.predict --classifier=$(DEMO)/classifier \
	  --segmenter=$(DEMO)/segmenter --overwrite \
	  --input=$(DEMO)/scans/phantom_1000001.nii.gz --out=$(DEMO)/trained_case
	@echo "open $(DEMO)/case/report.html and $(DEMO)/trained_case/report.html"

# By file, so that what a file's tests share is made once.
PYTEST := -m pytest -q -n auto --maxprocesses=4 --dist loadfile --durations=15

test: $(READY)
	$(PY) $(PYTEST)

test-slow: $(READY)
	$(PY) -m pytest -q -m slow --durations=15

# What a notebook runs, and what differs most between versions of jax.
PYTHON_COLAB ?= python3.13
COLAB := .venv-colab
COLAB_TESTS := $(addprefix tests/,core/parallel_test.py training \
  models/batch_norm_test.py models/folded_test.py models/folded_stem_test.py \
  models/pointwise_test.py \
  evaluate_test.py evaluation explain_test.py explanation notebook \
  colab_test.py)

$(COLAB)/.ready: colab/runtime.txt setup.py pyproject.toml
	$(PYTHON_COLAB) -c "import sys; sys.exit(sys.version_info[:2] != (3, 13) and 'Colab has Python 3.13; make PYTHON_COLAB=/path/to/python3.13')"
	$(PYTHON_COLAB) -m venv --clear $(COLAB)
	$(COLAB)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --requirement colab/runtime.txt --editable '.[test,colab]'
	touch $@

test-colab: $(COLAB)/.ready
	$(COLAB)/bin/python $(PYTEST) $(COLAB_TESTS)

# Without a stamp: what is newest is asked each time. jax's newest releases
# need more than Python 3.11.
PYTHON_LATEST ?= python3.13
LATEST := .venv-latest

test-latest:
	$(PYTHON_LATEST) -c "import sys; sys.exit(sys.version_info < (3, 12) and 'the newest jax needs Python 3.12 or newer; make PYTHON_LATEST=python3.12')"
	$(PYTHON_LATEST) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --upgrade --upgrade-strategy eager --editable '.[test]'
	$(LATEST)/bin/python -m pip list --disable-pip-version-check | grep -E \
	  '^(jax|jaxlib|flax|optax|orbax-checkpoint|grain|tensorflow-datasets) '
	$(LATEST)/bin/python $(PYTEST)

# Some 20 ms a case. `python -m fuzz --help` says how to repeat one.
CASES ?= 10000

fuzz: $(READY)
	PYTHONPATH=tests $(PY) -m fuzz --cases=$(CASES)

$(VENV)/.ready-bench: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

BENCH = $(PY) -m cadjax.bench --config=configs/resnet3d.py --what=train,infer \
  --against=torch

bench: $(VENV)/.ready-bench
	$(BENCH) --shape=128,64,64 --batch=2 --out=bench/128x64x64
	$(BENCH) --shape=256,128,128 --batch=1 --out=bench/256x128x128

# libtpu's compiler goes with the jax of Python 3.12 and newer. About an hour.
$(VENV)/.ready-tpu: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[tpu-aot]'
	touch $@

bench-tpu: $(VENV)/.ready-tpu
	$(PY) -m cadjax.bench.tpu --config=configs/resnet3d.py --out=bench/tpu \
	  --table=cadjax/bench/README.md

# The models of cadjax/weights, from phantoms; what was killed resumes. The
# commands go into their cards.
WEIGHTS := weights
MODELS := wide coronary classifier
HEART_BOX := --grid=heart --box_mm=128,128,128
DATA_wide := --seed=100 --cases=240 --grid=spacing --spacing_mm=2 \
  --scanner=fov_mm=360,length_mm=290 --fractions=0.9,0.05,0.05
DATA_coronary_lumen := --seed=100 --cases=160 $(HEART_BOX) --shape=192,192,192 \
  --fractions=0.8,0.05,0.15
DATA_coronary := --seed=101 --cases=160 $(HEART_BOX) --shape=192,192,192 \
  --fractions=0.8,0.05,0.15 --cad_fraction=0.9
DATA_classifier := --seed=100 --cases=800 $(HEART_BOX) --shape=64,64,64 \
  --fractions=0.8,0.1,0.1 --severity=overt
TRAIN_wide_plain := --config=wide:plain --workdir=$(WEIGHTS)/wide_plain
TRAIN_wide_anew := --config=wide:anew \
  --config.init_from=$(WEIGHTS)/wide_plain --workdir=$(WEIGHTS)/wide_anew
TRAIN_wide := --config=wide --config.init_from=$(WEIGHTS)/wide_anew \
  --workdir=$(WEIGHTS)/wide
TRAIN_coronary_lumen := --config=coronary:lumen \
  --config.init_from=$(WEIGHTS)/wide_anew --workdir=$(WEIGHTS)/coronary_lumen
TRAIN_coronary_plaque := --config=coronary:plaque \
  --config.init_from=$(WEIGHTS)/coronary_lumen \
  --workdir=$(WEIGHTS)/coronary_plaque
TRAIN_coronary := --config=coronary \
  --config.init_from=$(WEIGHTS)/coronary_plaque --workdir=$(WEIGHTS)/coronary
TRAIN_classifier_plain := --config=heart_classifier:plain \
  --workdir=$(WEIGHTS)/classifier_plain
TRAIN_classifier := --config=heart_classifier \
  --config.init_from=$(WEIGHTS)/classifier_plain \
  --workdir=$(WEIGHTS)/classifier
# The data sets and the trainings of each model, in order.
DATASETS_wide := wide
DATASETS_coronary := coronary_lumen coronary
DATASETS_classifier := classifier
TRAININGS_wide := wide_plain wide_anew wide
TRAININGS_coronary := coronary_lumen coronary_plaque coronary
TRAININGS_classifier := classifier_plain classifier
READY_DATA = $(patsubst %,$(WEIGHTS)/%_data/.ready,$(1))

weights: $(MODELS:%=weights-%)

weights-wide: | $(call READY_DATA,$(DATASETS_wide))
weights-coronary: weights-wide | $(call READY_DATA,$(DATASETS_coronary))
weights-classifier: | $(call READY_DATA,$(DATASETS_classifier))

$(WEIGHTS)/%_data/.ready: | $(READY)
	$(PY) -m data_prep.build --source=phantom $(DATA_$*) --overwrite --out=$(@D)
	touch $@

weights-%: $(READY)
	$(foreach one,$(TRAININGS_$*),$(PY) -m cadjax.main $(TRAIN_$(one)) &&) \
	  $(PY) -m cadjax.evaluate --workdir=$(WEIGHTS)/$*
	$(PY) -m cadjax.weights --pack=$(WEIGHTS)/$* --name=$* --overwrite \
	  $(foreach one,$(DATASETS_$*),--command="cadjax build --source=phantom $(DATA_$(one)) --out=$(WEIGHTS)/$(one)_data") \
	  $(foreach one,$(TRAININGS_$*),--command="cadjax train $(TRAIN_$(one))")

# What a failed experiment leaves is no result.
.DELETE_ON_ERROR:

# On 2 cores from 12 minutes (link) to about 80 (multiclass), each;
# two processes of one core each, or several machines, may share the folder.
PLANS := dimension shortcut layers explanations link prior multiclass balance external ablation \
  sample_size protocol
RESULTS := configs/experiments/results

experiments: $(PLANS:%=experiments/%/results.json)
	$(PY) -m cadjax.experiment --workdir=$(RESULTS) \
	  --table=configs/experiments/README.md

experiments/%/results.json: | $(READY)
	$(PY) -m cadjax.experiment --plan=configs/experiments/$*.py \
	  --workdir=experiments/$* --data=experiments/data
	mkdir -p $(RESULTS)/$*
	cp $(addprefix experiments/$*/,results.json cost.json index.html) \
	  $(RESULTS)/$*

# At the severity of a clinic; hours as well.
experiments-clinical: $(PLANS:%=experiments/clinical_%/results.json)
	$(PY) -m cadjax.experiment --workdir=$(RESULTS) \
	  --table=configs/experiments/README.md

experiments/clinical_%/results.json: | $(READY)
	$(PY) -m cadjax.experiment --plan=configs/experiments/$*.py \
	  --scale=clinical --workdir=experiments/clinical_$* \
	  --data=experiments/data
	mkdir -p $(RESULTS)/clinical_$*
	cp $(addprefix experiments/clinical_$*/,results.json cost.json index.html) \
	  $(RESULTS)/clinical_$*

experiments-smoke: $(READY)
	$(PY) -m pytest -q tests/experiment/experiment_test.py -k end_to_end

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(DEMO) bench experiments
