# make demo    import rows, write answers, convert a video and train a model in several
#              processes, stop them all, and verify that; under a minute;
#              DEMO_REDIS=none for the database alone
# make serve   the pages and processes of the demo for you to play with, until Ctrl-C
# make test    the fast tests: no other processes, no queue workers, no browser; two minutes
# make test-all
#              the fast tests, then make test-slow: those of processes, queues and faults
# make soak    both suites ten times each while four busy loops run beside them; RUNS=10
# make e2e     the pages of the demo and the tutorial in a browser; needs Chromium
# make pictures
#              those of the docs, as the pages look now; needs Chromium
# make chaos   processes and faults at random, and a count of the aborts that are lost;
#              SECONDS=600 SEED=7 DATABASE=postgresql (or mysql) REDIS=cluster
# make bench   the benchmarks
# make lint    style and types
# make docs    the site, in build/docs
# make messages
#              find and compile the texts to be translated; needs GNU gettext
#
# Everything is installed into .venv, with the first of these that is Python 3.11 or newer.

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PORT ?= 8000
# In a process of their own: there Django cannot be imported.
CORE := tests/core
FAST := tests/store tests/transport tests/runtime tests/web tests/app tests/contract \
	tests/project --ignore=tests/project/test_example.py --ignore=tests/project/test_snippets.py
SLOW := tests/processes tests/queues tests/faults tests/project/test_example.py \
	tests/project/test_snippets.py
TESTS ?= $(FAST)
RUNS ?= 10
SECONDS ?= 60
SEED ?=
DATABASE ?= sqlite
REDIS ?= single

.DEFAULT_GOAL := demo
.PHONY: demo serve test test-all test-slow soak e2e pictures chaos bench lint docs messages

demo: $(VENV)/.installed-demo
	@$(RUN) -m example.demo

serve: $(VENV)/.installed-demo
	@$(RUN) -m example.serve --port $(PORT)

PYTEST := $(RUN) -m pytest -q --numprocesses auto --maxprocesses 8

test: $(VENV)/.installed-test
	@$(if $(findstring $(FAST),$(TESTS)),$(PYTEST) $(CORE))
	@$(PYTEST) $(TESTS)

test-all: test test-slow

# They wait more than they compute: twice as many as there are processors.
test-slow: $(VENV)/.installed-test $(VENV)/.tried-uwsgi
	@$(PYTEST) --numprocesses $$($(RUN) -c 'import os; print(min(2 * os.cpu_count(), 8))') $(SLOW)

soak: $(VENV)/.installed-test $(VENV)/.tried-uwsgi
	@$(RUN) -m tests.soak --runs $(RUNS) "$(CORE)" "$(FAST)" "$(SLOW)"

e2e: $(VENV)/.installed-e2e
	@$(PYTEST) tests/e2e

pictures: $(VENV)/.installed-e2e
	@RENEW_PICTURES=1 $(RUN) -m pytest -q -p no:randomly tests/e2e/test_pictures.py

chaos: $(VENV)/.installed-test $(patsubst mysql,$(VENV)/.installed-mysql,$(filter mysql,$(DATABASE)))
	@$(RUN) -m tests.faults.chaos --seconds $(SECONDS) --database $(DATABASE) --redis $(REDIS) \
		$(if $(SEED),--seed $(SEED))

bench: $(VENV)/.installed-test
	@$(RUN) -m benchmarks

lint: $(VENV)/.installed-test $(VENV)/.installed-lint
	@$(RUN) -m ruff check --output-format concise
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy
	@$(VENV)/bin/lint-imports --no-cache
	@$(VENV)/bin/zizmor --quiet --offline .github

docs: $(VENV)/.installed-docs
	@$(RUN) -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet \
		docs build/docs

messages: $(VENV)/.installed-test
	@cd run_abort && ../$(RUN) -m django makemessages --locale de --locale zh_Hans --no-obsolete \
		--add-location file && ../$(RUN) -m django compilemessages

# A dependency group of pyproject.toml: $(VENV)/.installed-test, $(VENV)/.installed-lint, ...
$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing the dependency group $* into $(VENV) ..."
	@$(PIP) --group $*
	@touch $@

# Once, not with each group: pip builds it each time.
$(VENV)/.installed: $(VENV)/.made pyproject.toml
	@echo "Installing this project into $(VENV) ..."
	@$(PIP) -e .
	@touch $@

# It has to be compiled. Where that cannot be, its tests are skipped and say so; they fail with CI=1.
$(VENV)/.tried-uwsgi: $(VENV)/.made pyproject.toml
	@$(PIP) --group uwsgi >$@ 2>&1 || { rm $@; echo "uWSGI cannot be built here."; }

# pip knows dependency groups from 25.1 on.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one," \
		"or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer. Name another: make PYTHON=..."; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv --clear $(VENV) || { echo "The modules venv and ensurepip are needed;" \
		"on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PIP) --upgrade 'pip>=25.1'
	@touch $@
