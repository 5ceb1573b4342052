# Every target makes the environment that it needs, once: `make demo` is the first command.
PYTHON     ?= python3
TF         ?= cpu
OLDEST_PYTHON ?=
DEMO_ARGS  ?= --data digits --patience 2 --run-dir runs/demo
BENCH_ARGS ?=
PYTEST_ARGS ?=
VENV       := .venv
OLDEST     := .venv-oldest
NEWEST     := .venv-newest
PARITY     := .venv-parity
REPORTS    := reports
comma      := ,

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TF_CPP_MIN_LOG_LEVEL ?= 3

TIMEOUT    := $(if $(shell command -v timeout),timeout --foreground -s INT -k 30)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One lane at a time: two processes with TensorFlow fill two cores, and each lane that can be shared has two of them.
SHARED     := -n 2 --dist loadgroup
.NOTPARALLEL:
.PHONY: help demo test fast properties canaries replicas processes oldest distributed slurm browser newest nightly \
  lint format docs bench bench-large parity horovod clean FORCE

# Seconds that a lane may take on two quiet cores, once its environment is there. Machines differ by half of that and more:
# a lane that takes SLOWER times as long fails, and is ended a minute after that.
SLOWER     ?= 2
LIMITS     := lint=120 fast=180 properties=150 canaries=120 replicas=240 processes=90 oldest=360 distributed=1080 slurm=60 \
  browser=60 newest=240
limit       = $(patsubst $(1)=%,%,$(filter $(1)=%,$(LIMITS))) * $(SLOWER)

# The marks of lanes that need more than Python, and of those that run on the installed TensorFlow alone.
ELSEWHERE  := distributed or slurm or browser
ONCE       := properties or canaries

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 picks the interpreter, TF=gpu the TensorFlow build, DEMO_ARGS=\"...\" the demo's options."

demo: $(VENV)/.installed-$(TF)-demo ## train on real data with four simulated replicas (runs/demo/)
	@DISTLR_SIMULATE=4 $(VENV)/bin/python launch/train.py $(DEMO_ARGS)

test: lint fast properties replicas processes oldest canaries distributed ## lint, and all tests: also on the oldest TensorFlow and under the launchers

fast: $(VENV)/.installed-$(TF)-dev ## most of the tests, in under three minutes
	$(call lane,fast,$(VENV),not ($(ELSEWHERE) or $(ONCE) or processes or replicas),$(SHARED))

properties: $(VENV)/.installed-$(TF)-dev ## what must hold of any run, on draws of them (DISTLR_PROPERTY_DRAWS=500)
	$(call lane,properties,$(VENV),properties,$(SHARED))

canaries: $(VENV)/.horovod-$(TF) ## scripts as people write them, on one device, four replicas and two ranks
	$(call lane,canaries,$(VENV),canaries,$(SHARED))

replicas: $(VENV)/.installed-$(TF)-dev ## the tests that train again and again, on replicas or ranks
	$(call lane,replicas,$(VENV),replicas,$(SHARED))

processes: $(VENV)/.installed-$(TF)-dev ## the tests that start Python anew
	$(call lane,processes,$(VENV),processes)

oldest: $(OLDEST)/.installed ## fast and processes on TensorFlow 2.16 (make nightly has the replicas, too)
	$(call lane,oldest,$(OLDEST),not ($(ELSEWHERE) or $(ONCE) or replicas),$(SHARED))

distributed: $(VENV)/.horovod-$(TF) ## the tests under horovodrun and mpirun, on a Horovod built once
	$(call lane,distributed,$(VENV),distributed)

slurm: $(VENV)/.horovod-$(TF) ## the tests under Slurm, of which .ci/slurm makes one of a node (as root, on Debian)
	@.ci/slurm
	$(call lane,slurm,$(VENV),slurm,,.ci/slurm)

browser: $(VENV)/.installed-$(TF)-dev ## the report's page in a headless Chromium (installed as root, on Debian)
	@.ci/browser
	$(call lane,browser,$(VENV),browser,,.ci/browser)

newest: $(NEWEST)/.installed ## the optimizer's tests and the canaries on the newest Keras and TensorFlow, without Horovod
	$(call lane,newest,$(NEWEST),not ($(ELSEWHERE) or processes or replicas),tests/optimizer tests/canaries \
	  -k "optimizer or (one_device and not horovod)")

nightly: $(VENV)/.horovod-$(TF) ## what does not fit continuous integration, in an hour; it goes on where it was interrupted
	@$(VENV)/bin/python .ci/nightly

lint: $(VENV)/.installed-$(TF)-dev ## formatting, lint and types, of scripts and images too
	$(call timed,lint,$(VENV)/bin/ruff format --check . .ci/nightly && $(VENV)/bin/ruff check . .ci/nightly && $(VENV)/bin/mypy && \
	  $(VENV)/bin/shellcheck .ci/run .ci/slurm .ci/browser docker/*.sh launch/*.sh launch/slurm.sbatch && $(VENV)/bin/hadolint docker/Dockerfile.*)

format: $(VENV)/.installed-$(TF)-dev ## rewrite the files as lint wants them
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

docs: $(VENV)/.installed-$(TF)-dev demo ## run the commands that the pages show, and write what they print beneath them
	@$(VENV)/bin/python docs/outputs.py && cp runs/demo/report.png docs/demo.png

# Horovod's own optimizer works on legacy Keras alone; its package brings no TensorFlow of its own.
bench: $(VENV)/.horovod-$(TF) ## measure everything beside the peers, into benchmarks/RESULTS.md (BENCH_ARGS=--quick)
	@$(VENV)/bin/python -c "import tf_keras" 2>/dev/null || $(VENV)/bin/python -m pip install -q --no-deps tf_keras
	@$(VENV)/bin/python benchmarks/run.py $(BENCH_ARGS)

bench-large: $(VENV)/.installed-$(TF)-dev ## train the grid of large batches (hours; it goes on where it was interrupted)
	@$(VENV)/bin/python benchmarks/large_batch.py $(BENCH_ARGS)

parity: $(PARITY)/.installed ## measure the peers' schedules anew (torch, transformers, timm, optax, ignite): tests/parity/
	@$(PARITY)/bin/python -W ignore tests/parity/generate.py

horovod: $(VENV)/.horovod-$(TF) ## build Horovod into the environment (some minutes, once; the wheel is kept)

clean: ## remove all that make made, but for runs/
	@rm -rf $(VENV) $(OLDEST) $(NEWEST) $(PARITY) $(REPORTS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%-demo: pyproject.toml
	$(call install,$(VENV),$(PYTHON),-e ".[$*$(comma)demo]")

$(VENV)/.installed-%-dev: pyproject.toml
	$(call install,$(VENV),$(PYTHON),-e ".[$*$(comma)dev]")

$(PARITY)/.installed:
	$(call install,$(PARITY),$(PYTHON),optax pytorch-ignite timm torch transformers)

# Always anew, for what the registry has today: without the extras' upper bound, and a pre-release of Keras where there is one.
$(NEWEST)/.installed: FORCE
	$(call install,$(NEWEST),$(PYTHON),--upgrade -e . tensorflow-cpu "keras>=3.12.0rc0" \
	  hypothesis matplotlib pytest pytest-timeout pytest-xdist scikit-learn)

# An environment made anew, or with another TensorFlow, gets its Horovod anew: from the cached wheel where it fits.
$(VENV)/.horovod-%: docker/build-horovod.sh $(VENV)/.installed-%-dev
	@PYTHON=$(VENV)/bin/python docker/build-horovod.sh $(if $(filter gpu,$*),--gpu) && touch $@

# TensorFlow 2.16 runs on Python 3.12 at most; the oldest Python that distlr supports comes first.
$(OLDEST)/.installed: pyproject.toml
	@python=; for candidate in "$(OLDEST_PYTHON)" python3.10 "$$(pyenv prefix 3.10 2>/dev/null)/bin/python3.10" \
	    "$(PYTHON)" python3.11 python3.12; do \
	  if [ -n "$$candidate" ] && "$$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	      >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: TensorFlow 2.16 needs Python 3.10 to 3.12 and none was found. Name one: make oldest OLDEST_PYTHON=..." >&2; exit 1; \
	fi; \
	$(call install_shell,$(OLDEST),$$python,-e ".[dev]" "tensorflow-cpu==2.16.*")

# $(1) environment, $(2) interpreter, $(3) what pip installs. The log is shown only where it failed.
define install_shell
echo "preparing $(1) (a minute or two, once) ..."; mkdir -p $(1) && \
{ { [ -x $(1)/bin/pip ] || "$(2)" -m venv $(1); } && $(1)/bin/python -m pip install -q $(3); } > $(1)/install.log 2>&1 \
  || { cat $(1)/install.log >&2; echo "make: preparing $(1) failed, see above or $(1)/install.log" >&2; exit 1; }; touch $@
endef

define install
@$(call install_shell,$(1),$(2),$(3))
endef

# $(1) name, which has a limit, $(2) command. The exit status is the target's, and the time is printed either way.
define timed
@limit=$$(($(call limit,$(1)))); start=$$(date +%s); status=0; { $(2); } || status=$$?; seconds=$$(($$(date +%s) - start)); \
[ $$seconds -le $$limit ] || { echo "make: lane $(1) is past its limit of $$limit s" >&2; status=124; }; \
echo "lane $(1): exit $$status after $$seconds s (limit $$limit s)"; exit $$status
endef

# $(1) name, $(2) environment, $(3) marks, $(4) options, $(5) what the command runs under. pytest exits with 5 where it
# collected nothing, which fails the lane. An interrupt lets it say what was running, and end what it started.
define lane
$(call timed,$(1),$(5) $(if $(TIMEOUT),$(TIMEOUT) $$((limit + 60))) \
  $(2)/bin/python -m pytest -m "$(3)" $(4) --junitxml=$(REPORTS)/$(1).xml $(PYTEST_ARGS))
endef
