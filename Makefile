# Set-up, demo, tests and checks. Needs Python, make and a package registry; everything goes into .venv, or for another
# Paddle than the usual one into .venv-<version>.
PYTHON ?= python3
VENV ?= .venv
PADDLE ?= paddlepaddle==$(USUAL)
USUAL := 3.2.2
OTHERS := 2.6.2 3.3.1
# What depends on the Paddle: network, losses, gradients, files, inference, and the commands of the README.
SHORT := tests/models/test_golden.py tests/models/test_hierarchical.py tests/losses \
	tests/test_builder.py tests/config/test_reading.py tests/system/test_environment.py tests/system/test_memory.py \
	tests/system/test_device.py tests/weights/test_loading.py tests/weights/test_weight_files.py \
	tests/engine/test_checkpoint.py tests/engine/test_step.py tests/inference/test_averaging.py tests/inference/test_fold.py \
	tests/inference/test_programs.py tests/inference/test_backends.py tests/test_paddle_calls.py \
	$(addprefix tests/deploy/test_,export.py formats.py runtime.py deployment.py) \
	tests/engine/test_train.py::test_a_resumed_run_equals_an_uninterrupted_one \
	tests/test_readme.py
TFLITE := .venv-tflite
DATA := data/toy_cityscapes
RUN := output/demo
RECIPE := configs/mscale_ocr_toy.yml
WEB := deploy/web
bin := $(VENV)/bin
python := $(bin)/python

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(python) -m pip install --quiet --disable-pip-version-check --editable ".[cpu]" "$(PADDLE)"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(python) -m pip install --quiet --disable-pip-version-check --editable ".[cpu,dev]" "$(PADDLE)"
	touch $@

install: $(VENV)/installed  ## set up .venv

demo: $(VENV)/installed  ## draw a toy data set, train, evaluate, export and predict; images in output/demo
	$(python) tools/make_toy_cityscapes.py --output $(DATA)
	$(python) tools/convert_cityscapes.py --cityscapes_path $(DATA) --num_workers 2
	$(python) tools/convert_cityscapes_autolabeling.py --dataset_root $(DATA)
	$(python) -u -m paddle.distributed.launch --nproc_per_node 2 --log_dir $(RUN)/log train.py --config $(RECIPE) \
		--batch_size 2 --save_dir $(RUN)/model --resume_model auto --save_interval 200 --do_eval --use_vdl \
		--num_workers 1 --log_iters 25
	$(python) val.py --config $(RECIPE) --model_path $(RUN)/model/best_model --aug_eval --flip_horizontal \
		--num_workers 1 --output $(RUN)/evaluation.json --report $(RUN)/report
	$(python) export.py --config $(RECIPE) --model_path $(RUN)/model/best_model --save_dir $(RUN)/inference_model
	$(python) predict.py --config $(RECIPE) --model_path $(RUN)/model/best_model \
		--image_path $(DATA)/leftImg8bit/test --save_dir $(RUN)/prediction \
		--save color,overlay,sheet,confidence,decided
	$(python) tools/plot_training.py --log_dir $(RUN)/model --output $(RUN)/training.png
	@echo "Look at $(RUN)/prediction/sheets, $(RUN)/training.png, and the report, which opens in a browser:"
	@echo "file://$(abspath $(RUN))/report/index.html"

test: $(VENV)/installed-dev  ## the tests that take less than five minutes
	$(python) -m pytest

test-all: $(VENV)/installed-dev  ## all tests, also the slow ones
	$(python) -m pytest -m ''

test-short: $(VENV)/installed-dev  ## the tests that depend on the Paddle
	$(python) -m pytest -m '' $(SHORT)

$(TFLITE)/installed:
	$(PYTHON) -m venv $(TFLITE)
	$(TFLITE)/bin/python -m pip install --quiet --disable-pip-version-check onnx2tf==1.29.24 tensorflow==2.19.0 \
		tf_keras==2.19.0
	touch $@

test-tflite: $(VENV)/installed-dev $(TFLITE)/installed  ## export to TFLite and verify; makes .venv-tflite (2.6 GB)
	$(python) -m pip install --quiet --disable-pip-version-check --editable ".[cpu,dev,tflite]" "$(PADDLE)"
	$(python) -m pytest -m '' tests/deploy/test_tflite.py tests/deploy/test_routes.py

test-matrix: test-all $(OTHERS:%=test-all-on-%)  ## all tests on every supported Paddle, each in its own environment

test-others: $(OTHERS:%=set-up-%)  ## the tests that depend on the Paddle, side by side on those that are not in .venv
	$(MAKE) --jobs 2 $(patsubst %,--%,$(filter output-sync,$(.FEATURES))) $(OTHERS:%=test-short-on-%)

set-up-%:
	$(MAKE) .venv-$*/installed-dev VENV=.venv-$* PADDLE=paddlepaddle==$*

test-all-on-%:
	$(MAKE) test-all VENV=.venv-$* PADDLE=paddlepaddle==$*

test-short-on-%:
	$(MAKE) test-short VENV=.venv-$* PADDLE=paddlepaddle==$*

check: $(VENV)/installed-dev  ## lint, format and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/pyright --pythonpath $(python)

system-packages:  ## install cmake, g++ and Chromium, for deploy/cpp and deploy/web (Debian's packages, as root)
	tools/system_packages.sh

cpp: $(VENV)/installed  ## build deploy/cpp into build/cpp; CMAKE_OPTIONS="-DPADDLE_DIR=..." adds engines
	$(python) -m pip install --quiet --disable-pip-version-check --editable ".[cpu,openvino]" "$(PADDLE)"
	cmake -S deploy/cpp -B build/cpp -DCMAKE_BUILD_TYPE=Release $(CMAKE_OPTIONS) \
		-DOpenVINO_DIR="$$($(python) -c 'import openvino; print(openvino.__path__[0])')/cmake"
	cmake --build build/cpp --parallel

web-demo: $(VENV)/installed  ## build deploy/web with the demo's model, for the browser
	@command -v npm >/dev/null || { echo "expected npm, found none: install Node.js 20.19 or newer"; exit 1; }
	@test -d $(RUN)/model/best_model || { echo "expected $(RUN)/model/best_model, found none: run make demo"; exit 1; }
	$(python) -m pip install --quiet --disable-pip-version-check --editable ".[cpu,onnx]" "$(PADDLE)"
	$(python) export.py --config $(RECIPE) --model_path $(RUN)/model/best_model --save_dir $(RUN)/web_model \
		--format onnx --with_attention --with_confidence
	mkdir -p $(WEB)/public/model
	cp $(RUN)/web_model/deploy.yaml $(RUN)/web_model/model.onnx $(WEB)/public/model
	cd $(WEB) && npm ci --no-audit --no-fund && npm run build
	@echo "Built into $(WEB)/dist. Serve it: python3 $(WEB)/serve.py, or in $(WEB): npm run preview"

bench: $(VENV)/installed-dev  ## measure this project against what it replaces
	$(python) benchmarks/run.py

clean:  ## delete .venv and what demo and tests wrote
	rm -rf $(VENV) .venv-* output $(DATA) .pytest_cache .ruff_cache .hypothesis build *.egg-info \
		$(WEB)/node_modules $(WEB)/dist $(WEB)/public/model

.PHONY: help install demo test test-all test-short test-tflite test-matrix test-others check system-packages cpp web-demo bench clean
