# make demo    the whole loop on this machine: a local cloud, real containers, a real attack
# make test    every check that CI runs
# make help    the rest
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
ENV := . tools/env.sh;
export KEEP

.PHONY: help demo demo-kubernetes test build lint fmt deny check e2e bench clean
help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

demo: ## run the whole loop on the local cloud; KEEP=1 leaves it running
	@tools/setup.sh demo
	@$(ENV) cargo build --workspace --locked
	@$(ENV) exec $$AS_ROOT "$$CARGO_TARGET_DIR/debug/tasuki-demo" $${KEEP:+--keep}

demo-kubernetes: ## the same on a real Kubernetes on this machine, installed by helm; KEEP=1 leaves it running
	@tools/setup.sh demo-kubernetes
	@$(ENV) cargo build --workspace --locked
	@$(ENV) exec $$AS_ROOT "$$CARGO_TARGET_DIR/debug/tasuki-demo-kubernetes" $${KEEP:+--keep}

test: ## format, lints, licences and advisories, and every test
	@tools/setup.sh test
	@tools/test.sh

build: ## debug binaries of everything
	@tools/setup.sh build
	@$(ENV) cargo build --workspace --locked

fmt: ## format the code
	@$(ENV) cargo fmt --all && cd probes && cargo fmt

bench: ## measure, and write docs/benchmarks.md's figures to standard output
	@tools/setup.sh bench
	@$(ENV) cargo build --workspace --locked --release && $$AS_ROOT "$$CARGO_TARGET_DIR/release/tasuki-bench"

clean: ## remove build output and tools that these commands made
	@$(ENV) rm -rf "$$TASUKI_CACHE"
