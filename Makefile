# Everything that this project builds, checks and shows.
#
#   make demo             a TLSFarm on a real two-node Kubernetes of its own; CONTEXT=name uses a cluster that you have
#   make demo-down        take it away again
#   make test             every test, the ones on a real Kubernetes included
#   make test-unit        the tests that need no Kubernetes
#   make test-kubernetes  the tests on a real two-node Kubernetes, which is started and left running
#   make cluster-down     stop that Kubernetes and remove it
#   make fuzz             each parser and decoder against random input, 30 seconds each; FUZZ_SECONDS=n for longer
#   make mutants          mutates the decision-making code listed in tests/mutants, one change at a time, and expects a test to fail; takes hours
#   make mutants-change   the same for only the lines you changed since CHANGE_BASE, the previous commit by default
#   make coverage         which lines the unit and loopback tests run, by module
#   make bench-cache      compares the session cache with redis-server; prints the table of docs/performance.md
#   make lint             formatting, clippy, documentation, dependencies, scripts, charts, rendered manifests; needs no Kubernetes
#   make crds             writes the CustomResourceDefinition and docs/api.md again after a change of src/api
#   make image            the container image, as dist/tlsfarm.tar

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
IMAGE ?= localhost/tlsfarm:$(VERSION)
CONTEXT ?=

ARCH := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-gnu
BINARY := target/$(TARGET)/release/tlsfarm
CLUSTER := tests/cluster/cluster

.PHONY: help demo demo-down test test-unit test-kubernetes bench-cache fuzz mutants mutants-change coverage lint image cluster cluster-down crds

help:
	@sed -n 's/^#   //p' Makefile

demo: export TLSFARM_IMAGE = $(IMAGE)
demo:
	@deploy/demo/run up "$(CONTEXT)"

demo-down:
	@deploy/demo/run down "$(CONTEXT)"

test: test-unit test-kubernetes

# One test holds ten thousand connections open.
test-unit:
	tests/packages
	ulimit -Sn hard; \
	cargo test --locked --lib --bin tlsfarm --test architecture --test crd --test loopback
	cargo test --locked --doc

# The README's release of the CRD. A cluster that was left running may have a CRD from elsewhere, hence the flags.
test-kubernetes: cluster
	tests/packages
	eval "$$($(CLUSTER) env)"; \
	helm upgrade --install tlsfarm-crds charts/tlsfarm-crds --namespace default --take-ownership --force-conflicts; \
	TLSFARM_TEST_IMAGE=$(IMAGE) cargo test --locked --test kubernetes -- --test-threads=2 --show-output

# Stable Rust and a C++ compiler are enough: coverage guides the search, and no sanitizer is needed where unsafe is forbidden.
FUZZ_SECONDS ?= 30
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1

FUZZ_TARGETS := client_hello config http_request http_response resp_reply resp_request ring_document ticket
# Twice the largest limit that any of them has.
FUZZ_LONGEST := 131072

fuzz:
	@echo "fuzz: building; the first build takes about ten minutes on two cores"
	cd fuzz; RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --target $(TARGET)
	cd fuzz; for target in $(FUZZ_TARGETS); do \
		echo "fuzz: $$target"; \
		mkdir -p corpus/$$target artifacts/$$target; \
		target/$(TARGET)/release/$$target corpus/$$target $$(find seeds -name $$target) -max_total_time=$(FUZZ_SECONDS) \
			-max_len=$(FUZZ_LONGEST) -rss_limit_mb=512 -timeout=5 -artifact_prefix=artifacts/$$target/ -print_final_stats=1 \
			-print_funcs=0 -verbosity=0; \
	done; \
	echo "fuzz: $(words $(FUZZ_TARGETS)) targets, no crash"

mutants:
	tests/mutants

# What changed since CHANGE_BASE, by default since the commit before this one.
CHANGE_BASE ?= HEAD~1
mutants-change:
	tests/mutants since $(CHANGE_BASE)

coverage:
	tests/coverage

lint:
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
	tests/lint

bench-cache:
	tests/packages
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target $(TARGET)
	benches/cache.py $(BINARY)

# The last stage of the Dockerfile around a binary that cargo built here: no registry is asked for anything.
image: export TLSFARM_COMMIT = $(shell git describe --always --dirty --abbrev=12 --match='')
image:
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target $(TARGET)
	tests/cluster/image $(BINARY) $(IMAGE) dist/tlsfarm.tar

# The project's own Kubernetes, running, with this checkout's image in it.
cluster: image
	$(CLUSTER) up
	$(CLUSTER) load dist/tlsfarm.tar "$$(tests/backend/image)"

cluster-down:
	$(CLUSTER) down

crds:
	cargo run --locked --quiet -- crd >crds/tlsfarm.yaml
	cp crds/tlsfarm.yaml charts/tlsfarm-crds/files/tlsfarm.yaml
	TLSFARM_UPDATE_DOCS=1 cargo test --locked --quiet --test crd the_api_reference
