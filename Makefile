# Hearth. `make run` answers a question from nothing installed; `make test` runs everything.
# The work is in tests/setup/*.sh; this file only names it. Works with GNU make 3.81 and later.

.DEFAULT_GOAL := help
SHELL := /bin/sh

# The default question; `make run PROMPT='...'` asks another.
PROMPT ?= What is the capital of France?
# Arguments of `make bench`, such as BENCH_ARGS='--prompt 512 --depth 1024'.
BENCH_ARGS ?=
# Where `make install` puts the programs.
PREFIX ?= $(HOME)/.local

# The prompt reaches the script as it was typed: never expanded by make, never parsed by a shell.
# MAKEOVERRIDES is emptied for the same reason: it would hand PROMPT on to be expanded.
unexport PROMPT
MAKEOVERRIDES :=

.PHONY: help setup run stop test test-long fuzz build release fmt lint bench doc deny install clean

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

setup: ## Install what is missing and fetch the default model
	@tests/setup/setup.sh all

run: export HEARTH_PROMPT := $(value PROMPT)
run: ## Set everything up, start the daemon and stream an answer to PROMPT
	@tests/setup/run.sh

stop: ## Stop the daemon that `make run` started
	@tests/setup/stop.sh

test: ## Format, lints, all tests, doc tests, the Python service test, licences
	@tests/setup/test.sh

test-long: export HEARTH_LONG_TESTS := 1
test-long: ## As test, with every kernel, every text and the perplexity of a long one
	@tests/setup/test.sh

fuzz: ## A bounded run of every fuzz target (FUZZ_RUNS, FUZZ_SECONDS); needs Linux
	@tests/setup/fuzz.sh

build: ## Debug build of everything, tests included
	@tests/setup/setup.sh tools
	cargo build --workspace --all-targets

release: ## Release build of hearthd and hearth
	@tests/setup/setup.sh tools
	cargo build --release -p hearthd -p hearth

fmt: ## Format the code
	cargo fmt --all

lint: ## Format check and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench: ## Measure prefill and decode on this machine with the default model
	@tests/setup/bench.sh $(BENCH_ARGS)

doc: ## API documentation in target/doc
	cargo doc --workspace --no-deps

deny: ## Check licences, banned crates, sources and advisories (needs a network)
	@command -v cargo-deny >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny check

install: release ## Copy the programs to PREFIX/bin (default ~/.local)
	install -d "$(PREFIX)/bin"
	install -m 755 "$${CARGO_TARGET_DIR:-target}/release/hearthd" "$${CARGO_TARGET_DIR:-target}/release/hearth" "$(PREFIX)/bin/"

clean: stop ## Stop the daemon, remove build output; the downloaded model stays
	cargo clean
