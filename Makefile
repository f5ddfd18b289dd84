.PHONY: demo test docs fuzz census runtimes lint examples notebooks bench gpu ray browser release clean

PYTHON ?= python3
BIN := .venv/bin

demo: .venv/demo.stamp
	$(BIN)/python examples/demo.py

# MEASURE=1 adds branch coverage and its floor, which takes half as long again; .ci/run does.
test: .venv/test.stamp
	$(BIN)/python -m pytest -m "not slow and not ray and not gpu and not browser and not release and not notebooks" \
		--numprocesses auto --maxprocesses 4 --dist loadfile \
		$(if $(MEASURE),--cov --cov-report=term-missing:skip-covered)

# The documentation, strictly, into out/site: a link that leads nowhere is an error.
# --quiet would keep warnings from --strict, too.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest tests/docs/test_website.py

# For example FUZZ="--seconds 600 --seed 7 --only layers"; --help says more.
fuzz: .venv/test.stamp
	$(BIN)/python -m tests.fuzz $(FUZZ)

# Every operation of torch's own database; writes docs/reference/operations.md. Takes about twenty minutes on one core.
census: .venv/test.stamp
	$(BIN)/python -W ignore -m tests.census $(CENSUS)

# Exported files in tract, OpenCV, tinygrad and OpenVINO, in an environment of their own; tinygrad compiles with
# clang. Writes docs/reference/onnx_runtimes.md.
runtimes: .venv-runtimes/stamp
	.venv-runtimes/bin/python -m pytest tests/rewriter/onnx/runtimes
	.venv-runtimes/bin/python -W ignore -m tests.rewriter.onnx.runtimes

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/test.stamp
	$(BIN)/python -m pytest -m slow tests/test_benchmarks.py
	for each in benchmarks/*.py benchmarks/files/*.py; do $(BIN)/python $$each || exit 1; done

examples: .venv/test.stamp
	$(BIN)/python -m pytest tests/test_examples.py

# From top to bottom, each in a kernel of its own; what they show is held to what is committed. `python -m
# tests.support.notebooks` writes it anew.
notebooks: .venv/docs.stamp
	$(BIN)/python -m pytest -m notebooks tests/test_notebooks.py --numprocesses auto --maxprocesses 4

# Where there is a CUDA device; tests say that they were skipped where there is none.
gpu: .venv/test.stamp
	$(BIN)/python -m pytest -m gpu -rs tests/rewriter/test_on_gpu.py
	$(BIN)/python benchmarks/explain.py --part cuda

# Jobs on many processes: Ray is large, and takes seconds to begin.
ray: .venv/ray.stamp
	$(BIN)/python -m pytest tests/rewriter/jobs/test_on_ray.py tests/rewriter/jobs/test_serving.py

# Pages in Chromium, which a package of npm brings along, as another does onnxruntime-web.
browser: .venv/test.stamp
	npm ci --prefix tests/rewriter/html/browser
	npm ci --prefix examples/browser
	$(BIN)/python -m pytest -m browser tests/rewriter/html

# The wheel in empty environments: alone, with each extra, with the oldest versions that are promised. RELEASE_PYTHON
# names another Python to install it for.
release: .venv/release.stamp
	$(BIN)/python -m pytest -m release tests/release

clean:
	rm -rf .venv .venv-runtimes out

.venv/demo.stamp: requirements/demo.txt pyproject.toml setup.py rewriter/engine/sweeps/sweep.c rewriter/engine/sweeps/build_library.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/demo.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/test.stamp: requirements/test.txt .venv/demo.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/test.txt
	touch $@

.venv/docs.stamp: requirements/docs.txt .venv/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	touch $@

.venv-runtimes/stamp: requirements/runtimes.txt requirements/test.txt requirements/demo.txt pyproject.toml
	test -x .venv-runtimes/bin/python || $(PYTHON) -m venv .venv-runtimes
	.venv-runtimes/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/runtimes.txt
	.venv-runtimes/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/release.stamp: requirements/release.txt .venv/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/release.txt
	touch $@

.venv/ray.stamp: requirements/ray.txt .venv/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/ray.txt
	touch $@
