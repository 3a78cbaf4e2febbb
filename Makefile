# Everything runs in a virtual environment of the project; the first command makes it.

VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3

.PHONY: help run test truth fuzz lab-test lab-ordinary lab-debug lab-older lab-soak qemu-test browser-test conform lint format htmldocs pdfdocs bench clean

help:
	@echo 'make run       move a software ConnectX VF between two processes, both ways'
	@echo 'make test      the tests (three to four minutes)'
	@echo 'make truth     a guest of 1 GiB and 1,000 QPs moves at rates from idle to saturation'
	@echo 'make fuzz      a million spoilt streams for the dissectors'
	@echo 'make lab-test  the tests against a real kernel (builds two the first time)'
	@echo 'make lab-older those that are about an older kernel (builds one more)'
	@echo 'make lab-soak  a working guest goes back and forth in a real kernel, TRIPS=200 times'
	@echo 'make qemu-test QEMU moves the same device in the same kernel, and has the VF by vfio-user'
	@echo 'make browser-test  the page of a migration, looked at in Chromium'
	@echo 'make conform   every driver and device of the lab held to the uAPI, on both kernels (some eight minutes)'
	@echo 'make lint      ruff and mypy --strict'
	@echo 'make htmldocs  the documentation, in Documentation/_build/html'
	@echo 'make pdfdocs   the same as one PDF, in Documentation/_build/pdf'
	@echo 'make bench     what is claimed about speed, measured here'

# Debian has venv in a package of its own; where that is missing, say so in one line.
$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'precopy: python3 -m venv failed: apt-get install python3-venv' >&2; exit 1; }

$(VENV)/.run: pyproject.toml | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.run

$(VENV)/.lint: pyproject.toml | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[test,lint]'
	@touch $@ $(VENV)/.test $(VENV)/.run

$(VENV)/.browser: pyproject.toml $(VENV)/.test
	$(PY) -m pip install -q --disable-pip-version-check -e '.[test,browser]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(PY)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[docs]'
	@touch $@ $(VENV)/.run

$(VENV)/.pdf: pyproject.toml $(VENV)/.docs
	$(PY) -m pip install -q --disable-pip-version-check -e '.[docs,pdf]'
	@touch $@

run: $(VENV)/.run
	$(VENV)/bin/precopy migrate --compare --min-rounds 2 --progress lines 'sim:mlx5?qps=1000&active=32&state=64M' sim:mlx5

test: $(VENV)/.test
	$(PY) -m pytest tests --ignore=tests/lab --ignore=tests/interop

truth: $(VENV)/.test
	$(PY) -m tests.truth

fuzz: $(VENV)/.test
	$(PY) -m tests.fuzz.streams --inputs 1000000

lab-test: $(VENV)/.test
	$(VENV)/bin/precopy lab build --variant ordinary --variant debug >/dev/null
	@echo 'on both kernels at once: their output comes when they are done, in some minutes'
	@$(MAKE) --no-print-directory -j2 --output-sync=target lab-ordinary lab-debug

# What lab-test does, once the kernels are there.
lab-ordinary: $(VENV)/.test
	$(VENV)/bin/precopy lab coverage --clear
	$(PY) -m pytest tests/lab -m 'not older' --lab-coverage
	$(VENV)/bin/precopy lab coverage --least 90

# Without the tests of the lab itself, which name the kernel that they are about.
lab-debug: $(VENV)/.test
	$(PY) -m pytest tests/lab -m 'not older' --lab-variant debug --sequences 60 --ignore=tests/lab/test_trouble.py --ignore=tests/lab/test_coverage.py

# Those that are about Linux 6.12, Debian 13's own.
lab-older: $(VENV)/.test
	$(VENV)/bin/precopy lab build >/dev/null
	$(VENV)/bin/precopy lab build --kernel 6.12 >/dev/null
	$(PY) -m pytest tests/lab -m older

TRIPS ?= 200

lab-soak: $(VENV)/.test
	$(VENV)/bin/precopy lab build >/dev/null
	$(PY) -m tests.lab.soak --trips $(TRIPS)

qemu-test: $(VENV)/.test
	$(VENV)/bin/precopy lab build >/dev/null
	$(PY) -m precopy.lab.qemu >/dev/null
	$(PY) -m precopy.lab.guest_kernel >/dev/null
	$(PY) -m pytest tests/interop --ignore=tests/interop/browser

# Chromium comes from Debian into the cache; the host is given nothing.
browser-test: $(VENV)/.browser
	$(PY) -m tests.interop.browser.chromium >/dev/null
	$(PY) -m pytest tests/interop/browser

# Ends well although drivers fail: what is known of them is stated. JOBS targets at once.
JOBS ?= 2

conform: $(VENV)/.test
	$(VENV)/bin/precopy lab build --variant ordinary --variant debug >/dev/null
	$(VENV)/bin/precopy lab build --kernel 6.12 --variant ordinary --variant debug >/dev/null
	$(VENV)/bin/precopy lab conform --jobs $(JOBS) --write Documentation/conformance/results.json

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

htmldocs: $(VENV)/.docs
	$(PY) -m sphinx -q -W --keep-going -b html Documentation Documentation/_build/html
	@echo Documentation/_build/html/index.html

pdfdocs: $(VENV)/.pdf
	$(PY) -m sphinx -q -W --keep-going -b pdf Documentation Documentation/_build/pdf
	@echo Documentation/_build/pdf/precopy.pdf

bench: $(VENV)/.run
	$(PY) -m benchmarks

clean:
	rm -rf $(VENV) Documentation/_build
