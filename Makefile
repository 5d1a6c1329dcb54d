# Two targets are all a newcomer needs: make demo, make test.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := $(CURDIR)/bin
GOLANGCI_LINT_VERSION := v2.15.0
CONTROLLER_GEN_VERSION := v0.23.0
GOLANGCI_LINT := $(BIN)/golangci-lint-$(GOLANGCI_LINT_VERSION)
CONTROLLER_GEN := $(BIN)/controller-gen-$(CONTROLLER_GEN_VERSION)

# The product's module, and that of the development control plane's binary, which
# is apart since it depends on all of Kubernetes.
MODULES := . hack/cluster/hyperkube

##@ Use

.PHONY: demo
demo: build cluster-assets ## Show Berth at work on a real control plane; Ctrl-C ends it, DEMO_ONCE=1 ends it by itself.
	go run ./hack/demo

.PHONY: demo-nfs
demo-nfs: build cluster-assets ## The same for NFS, with two real servers; needs root and NFS-Ganesha.
	go run ./hack/demo -nfs

.PHONY: bench
bench: build cluster-assets ## Measure claims/s and latency beside the library's controller and the limit (N=, RUNS=, RATE=, KCM_QPS=, BENCH_JSON=).
	go run ./hack/bench

.PHONY: bench-nfs
bench-nfs: ## Measure NFS volumes/s beside the client's limit and beside a mount per call; needs root and NFS-Ganesha.
	go run ./hack/bench/nfs $(BENCHFLAGS)

.PHONY: build
build: ## Build bin/berth.
	CGO_ENABLED=0 go build -trimpath -o $(BIN)/berth .

##@ Test

.PHONY: test
test: build cluster-assets ## Run every test, against a real API server and kube-controller-manager.
	go build -race ./...
	go test -race -p 1 -timeout 30m $(TESTFLAGS) ./...

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run go vet and golangci-lint.
	go vet ./...
	$(GOLANGCI_LINT) run ./...
	go vet -tags crashpoints ./internal/crashpoint

.PHONY: fmt
fmt: ## Format all Go code.
	gofmt -w $$(git ls-files '*.go')

.PHONY: check-fmt
check-fmt: ## Fail when Go code is not formatted.
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [[ -n $$unformatted ]]; then echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; fi

##@ Generate

.PHONY: generate
generate: $(CONTROLLER_GEN) ## Generate config/rbac/role.yaml from the markers in the code, and tidy the modules.
	$(CONTROLLER_GEN) rbac:roleName=berth-controller 'paths=./controllers/...;./internal/cli/...' output:rbac:dir=config/rbac
	for module in $(MODULES); do go -C $$module mod tidy; done

.PHONY: check-generated
check-generated: generate ## Fail when generated files are not what is committed.
	@changed=$$(git status --porcelain -- config go.mod go.sum hack/cluster/hyperkube/go.mod hack/cluster/hyperkube/go.sum); \
	if [[ -n $$changed ]]; then echo "stale generated files (make generate):"; echo "$$changed"; git --no-pager diff -- config go.mod hack/cluster/hyperkube/go.mod; exit 1; fi

##@ Development control plane

.PHONY: cluster-assets
cluster-assets: ## Build etcd, Kubernetes and kubectl once (about 9 minutes), unless KUBEBUILDER_ASSETS names them.
	@go -C hack/cluster run . assets >/dev/null

.PHONY: cluster-up
cluster-up: cluster-assets ## Run a control plane in the foreground; prints the KUBECONFIG line.
	go -C hack/cluster run . up

.PHONY: cluster-down
cluster-down: ## End the control plane that make cluster-up runs.
	go -C hack/cluster run . down

##@ Help

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z-]+:.*##/ {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(GOLANGCI_LINT):
	GOBIN=$(BIN)/.install go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv $(BIN)/.install/golangci-lint $@

$(CONTROLLER_GEN):
	GOBIN=$(BIN)/.install go install sigs.k8s.io/controller-tools/cmd/controller-gen@$(CONTROLLER_GEN_VERSION)
	mv $(BIN)/.install/controller-gen $@
