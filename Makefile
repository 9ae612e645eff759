# `make demo` is the main job, `make test` the tests; both set everything up themselves.
.DEFAULT_GOAL := help
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt scripts/install.sh

.PHONY: help install demo up test check generate docs screenshots sbom clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.demo  ## make .venv with everything the demo needs

.venv/.demo: $(SOURCES)
	@scripts/install.sh demo

.venv/.dev: $(SOURCES)
	@scripts/install.sh dev

.venv/.docs: $(SOURCES)
	@scripts/install.sh docs

demo: install  ## replay the flights of 2013: drift, triggers, retraining, one table at the end
	@$(BIN)/python -m demo

up: install  ## keep the daemon and the pipeline running on the demo's state until Ctrl-C
	@$(BIN)/python -m demo --up

test: .venv/.demo .venv/.dev  ## run the tests, with the real servers where they can be had
	@scripts/services.sh
	@$(BIN)/pytest -n 2 --dist loadfile

check: .venv/.dev  ## lint, types, dependency direction, generated files up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/protos.py --check
	$(BIN)/python grafana/build.py --check
	$(BIN)/steadfeast schema | cmp - docs/steadfeast.schema.json

generate: .venv/.dev  ## write the generated files anew: protobuf stubs, dashboards, tables
	$(BIN)/python scripts/protos.py
	$(BIN)/python grafana/build.py
	$(BIN)/steadfeast schema --out docs/steadfeast.schema.json

docs: .venv/.docs  ## build the documentation site into site/, with every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

screenshots: .venv/.demo .venv/.dev  ## write docs/images/*.png from the real page and a report
	@scripts/services.sh
	@PYTHONPATH=. $(BIN)/python scripts/screenshots.py

sbom: .venv/.demo  ## write sbom.cdx.json, a CycloneDX bill of what is installed
	@scripts/sbom.sh

clean:  ## remove the environment and the demo's state
	rm -rf .venv feature_repo/data site
