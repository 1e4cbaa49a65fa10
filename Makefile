# make install | demo | demo-classification | study | test | lint
# Overrides: PYTHON=..., VENV=..., SEED=..., DETECTRON2=..., STUDY=configs/studies/..., QUICK=1
PYTHON ?= python3
SEED ?= 0
STUDY ?= configs/studies/paper_tables.yaml
# Of the study: minutes in place of hours, on a smaller set.
QUICK ?=
# A folder or pip requirement to use instead of the registry's Detectron2 0.6; it gets an
# environment of its own.
DETECTRON2 ?=
VENV ?= .venv$(if $(DETECTRON2),-$(shell echo '$(DETECTRON2)' | cksum | cut -d' ' -f1))

BIN := $(VENV)/bin
RUNS := $(VENV)/.lvis-tde-runs
STAMP := $(VENV)/.lvis-tde-installed
# Two busy processes with two threads each on two cores are far slower than one thread each.
export OMP_NUM_THREADS ?= 2

.PHONY: install demo demo-classification study test lint

install: $(STAMP)

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV) || (echo "No virtual environment: apt install python3-venv?"; exit 1)

# What users need; the demo does not wait for the packages of developers.
$(RUNS): $(BIN)/pip setup.py tools/install_detectron2.py tools/install_emoji_font.sh
	$(BIN)/python -c "import torch, torchvision" 2>/dev/null || $(BIN)/pip install torch torchvision
ifneq ($(DETECTRON2),)
# Detectron2 main imports pkg_resources, which setuptools 82 dropped; its ViTDet needs the last two.
	$(BIN)/pip install wheel "setuptools<82" timm shapely
	$(BIN)/pip install --no-build-isolation $(DETECTRON2)
endif
	$(BIN)/python tools/install_detectron2.py
	$(BIN)/pip install -e .
# opencv-python needs libGL, which a server may lack; the headless build has the same module.
	$(BIN)/python -c "import cv2" 2>/dev/null || $(BIN)/pip install opencv-python-headless
	sh tools/install_emoji_font.sh
	touch $@

$(STAMP): $(RUNS)
	$(BIN)/pip install -e ".[dev]"
	touch $@

demo: $(RUNS)
	$(BIN)/python tools/run_demo.py --seed $(SEED)

demo-classification: install
	OMP_NUM_THREADS=1 $(BIN)/python tools/run_classification_demo.py

study: $(RUNS)
	OMP_NUM_THREADS=1 $(BIN)/python tools/run_study.py --config $(STUDY) $(if $(filter-out 0,$(QUICK)),--quick)

# Files of tests side by side, each process with one thread.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/black --check .
	$(BIN)/isort --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
