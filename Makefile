# Two targets are all a newcomer needs: make demo, make test.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := $(CURDIR)/bin
GOLANGCI_LINT_VERSION := v2.15.0
CONTROLLER_GEN_VERSION := v0.23.0
GOLANGCI_LINT := $(BIN)/golangci-lint-$(GOLANGCI_LINT_VERSION)
CONTROLLER_GEN := $(BIN)/controller-gen-$(CONTROLLER_GEN_VERSION)
ACTIONLINT_VERSION := v1.7.12
ACTIONLINT := $(BIN)/actionlint-$(ACTIONLINT_VERSION)
CYCLONEDX_VERSION := v1.10.0
CYCLONEDX := $(BIN)/cyclonedx-gomod-$(CYCLONEDX_VERSION)
HELM_VERSION := v3.22.0
KUBECONFORM_VERSION := v0.8.0
HELM_DOCS_VERSION := v1.14.2
HELM := $(BIN)/helm-$(HELM_VERSION)
KUBECONFORM := $(BIN)/kubeconform-$(KUBECONFORM_VERSION)
HELM_DOCS := $(BIN)/helm-docs-$(HELM_DOCS_VERSION)

# The product's module, and two that are apart for what they depend on: that of the
# development control plane's binary on all of Kubernetes, the checks of alerts and
# dashboard on Prometheus.
MODULES := . hack/cluster/hyperkube hack/promcheck

##@ Use

.PHONY: demo
demo: build cluster-assets ## Show Berth at work on a real control plane; Ctrl-C ends it, DEMO_ONCE=1 ends it by itself.
	go run ./hack/demo

.PHONY: demo-nfs
demo-nfs: build cluster-assets ## The same for NFS, with two real servers; needs root and NFS-Ganesha.
	go run ./hack/demo -nfs

.PHONY: bench
bench: build cluster-assets ## Measure claims/s and latency beside the library's controller and the limit (N=, RUNS=, RATE=, WAIT_FOR_CONSUMER=, KCM_QPS=, BENCH_JSON=).
	go run ./hack/bench

.PHONY: bench-loads
bench-loads: cluster-assets ## Measure claims under loads that hold kube-controller-manager up; fails when one is Lost (LOADS=, MODES=, ROUNDS=, BASELINE=, BENCH_JSON=).
	go run ./hack/bench loads

.PHONY: bench-pods
bench-pods: cluster-assets ## Measure 50 pods with claims beside 50 without, on two real kubelets; needs root on Linux (PODS=, BENCH_JSON=).
	go run ./hack/bench/pods

.PHONY: bench-nfs
bench-nfs: ## Measure NFS volumes/s beside the client's limit and beside a mount per call; needs root and NFS-Ganesha.
	go run ./hack/bench/nfs $(BENCHFLAGS)

.PHONY: bench-nodes
bench-nodes: cluster-assets ## Simulate a controller with 50 and 5,000 nodes: memory, watches, time for a volume on each (ARGS="-nodes 50,1000").
	go run ./hack/bench/nodes $(ARGS)

.PHONY: build
build: ## Build bin/berth.
	CGO_ENABLED=0 go build -trimpath -o $(BIN)/berth .

.PHONY: image
image: ## Build Berth's image, dist/berth-ARCH.tar, without Docker (ARCH=, TAG=).
	go run ./hack/image $(if $(ARCH),-arch $(ARCH)) $(if $(TAG),-tag $(TAG)) berth

##@ Test

.PHONY: test
test: build cluster-assets ## Run every test, against a real API server and kube-controller-manager.
	go build -race ./...
	go test -race -p 1 -timeout 30m $(TESTFLAGS) ./...

.PHONY: e2e
e2e: cluster-assets ## Test with real nodes: two kubelets with containerd; needs root on Linux (BERTH_REQUIRE_E2E=1 fails instead of skipping).
	BERTH_E2E=1 go test -count=1 -v -parallel 6 -timeout 15m ./test/cluster ./test/e2e

NFS_FAULTS_N ?= 2000
NFS_FAULTS_TIMEOUT ?= 120m

.PHONY: test-nfs-faults
test-nfs-faults: ## Create and delete volumes on NFS servers that stall, and whose network loses calls; needs root on Linux (NFS_FAULTS_N=, NFS_FAULTS_SEED=).
	BERTH_NFS_FAULTS_N=$(NFS_FAULTS_N) BERTH_NFS_FAULTS_SEED=$(NFS_FAULTS_SEED) BERTH_REQUIRE_NFS=1 BERTH_REQUIRE_UML=1 \
		go test -count=1 -v -timeout $(NFS_FAULTS_TIMEOUT) $(TESTFLAGS) ./test/nfsfaults

.PHONY: csi-sanity
csi-sanity: ## Run the CSI conformance suite on an agent, and list the specs that don't apply. Part of make test.
	go test -count=1 -v -run TestCSISanity ./internal/agent

.PHONY: check-monitoring
check-monitoring: ## Check alerts and dashboard with Prometheus' own code.
	go -C hack/promcheck vet ./...
	go -C hack/promcheck test -count=1 ./...

.PHONY: chart-test
chart-test: cluster-assets $(HELM) $(KUBECONFORM) ## Check the chart and its parity with config/, against a real API server, without nodes.
	BERTH_HELM=$(HELM) BERTH_KUBECONFORM=$(KUBECONFORM) go test -count=1 $(TESTFLAGS) ./test/chart

.PHONY: chart-e2e
chart-e2e: cluster-assets $(HELM) ## Install, use, upgrade and remove Berth on real nodes, by Helm and by kustomize; needs what e2e needs.
	BERTH_E2E=1 BERTH_HELM=$(HELM) go test -count=1 -v -timeout 15m ./test/install

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run go vet and golangci-lint.
	go vet ./...
	$(GOLANGCI_LINT) run ./...
	go vet -tags crashpoints ./internal/crashpoint

.PHONY: docs-test
docs-test: cluster-assets ## Check the documentation: links, make targets, flags, diagrams, and the commands that can run here.
	go test -count=1 $(TESTFLAGS) ./test/docs

.PHONY: lint-workflows
lint-workflows: $(ACTIONLINT) ## Check .github/workflows (with shellcheck, when it is installed) and the shell scripts.
	$(ACTIONLINT)
	if command -v shellcheck >/dev/null; then shellcheck .ci/run $$(git ls-files '*.sh'); else echo "no shellcheck here (Debian: apt-get install shellcheck)"; fi

.PHONY: fmt
fmt: ## Format all Go code.
	gofmt -w $$(git ls-files '*.go')

.PHONY: check-fmt
check-fmt: ## Fail when Go code is not formatted.
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [[ -n $$unformatted ]]; then echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; fi

##@ Generate

.PHONY: generate
generate: $(CONTROLLER_GEN) $(HELM_DOCS) ## Generate config/rbac/role.yaml from the markers in the code, the chart's copies and README, and tidy the modules.
	$(CONTROLLER_GEN) rbac:roleName=berth-controller 'paths=./controllers/...;./internal/...;./provisioner/...' output:rbac:dir=config/rbac
	cp config/rbac/role.yaml config/admission/policies.yaml charts/berth/files/
	{ cat config/prometheus/prometheusrule.yaml.in; sed 's/^./  &/' charts/berth/files/alerts.yaml; } >config/prometheus/prometheusrule.yaml
	$(HELM_DOCS) --chart-search-root charts --sort-values-order file --log-level warning
	for module in $(MODULES); do go -C $$module mod tidy; done

.PHONY: check-generated
check-generated: generate ## Fail when generated files are not what is committed.
	@changed=$$(git status --porcelain -- config charts $(foreach m,$(MODULES),$(m)/go.mod $(m)/go.sum)); \
	if [[ -n $$changed ]]; then echo "stale generated files (make generate):"; echo "$$changed"; git --no-pager diff -- config $(foreach m,$(MODULES),$(m)/go.mod); exit 1; fi

##@ Release

.PHONY: image-all
image-all: ## Build the images for all architectures, one OCI layout of all of them, and the binaries, into dist/ (TAG=).
	go run ./hack/image -arch all -oci -binaries $(if $(TAG),-tag $(TAG)) berth

.PHONY: check-image
check-image: ## Build the image twice, apart from each other, and fail when a byte differs (ARCH=all for all architectures).
	hack/image/reproduce.sh $(ARCH)

.PHONY: check-architectures
check-architectures: ## Type-check Berth for all architectures of its image, which is much faster than to compile it.
	go test -count=1 -v -run TestBerthCompilesForAllArchitectures ./hack/image

.PHONY: sbom
sbom: $(CYCLONEDX) ## Write a bill of materials (CycloneDX) beside each binary in dist/.
	for binary in dist/berth-linux-*; do [[ $$binary == *.json ]] || GOPROXY=off $(CYCLONEDX) bin -json -std \
		-licenses -assert-licenses -notimestamp -noserial -output $$binary.cdx.json $$binary; done

.PHONY: release
release: $(CYCLONEDX) $(HELM) ## Build all files of the release TAG=v1.2.3 into an empty dist/. docs/releasing.md says what becomes of them.
	@[[ "$(TAG)" == v* ]] || { echo "say which release: make release TAG=v1.2.3"; exit 1; }
	rm -rf dist
	$(MAKE) image-all sbom
	hack/package-chart.sh $(HELM) $(TAG) dist
	cd dist && sha256sum -- * >SHA256SUMS

.PHONY: check-release
check-release: $(CYCLONEDX) $(HELM) ## Make binary, bill of materials and chart of a release for this machine's architecture; fail when two packings of the chart differ.
	rm -rf dist/again dist/berth-linux-*
	go run ./hack/image -binaries berth
	$(MAKE) sbom
	test -s dist/berth-linux-$$(go env GOARCH).cdx.json
	mkdir dist/again
	for folder in dist dist/again; do hack/package-chart.sh $(HELM) v0.0.0-check $$folder; done
	cmp dist/berth-0.0.0-check.tgz dist/again/berth-0.0.0-check.tgz

##@ Development control plane

.PHONY: cluster-assets
cluster-assets: ## Build etcd, Kubernetes and kubectl once (about 9 minutes), unless KUBEBUILDER_ASSETS names them; KUBERNETES=1.34 for another version.
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

$(ACTIONLINT):
	GOBIN=$(BIN)/.install go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)
	mv $(BIN)/.install/actionlint $@

$(CYCLONEDX):
	GOBIN=$(BIN)/.install go install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX_VERSION)
	mv $(BIN)/.install/cyclonedx-gomod $@
# Without the linker's word for it, helm takes templates to be for Kubernetes 1.20.
HELM_MODULE := helm.sh/helm/v3
HELM_KUBERNETES := -X $(HELM_MODULE)/pkg/chartutil.k8sVersionMajor=1 -X $(HELM_MODULE)/pkg/chartutil.k8sVersionMinor=37 \
	-X $(HELM_MODULE)/pkg/lint/rules.k8sVersionMajor=1 -X $(HELM_MODULE)/pkg/lint/rules.k8sVersionMinor=37

$(HELM):
	GOBIN=$(BIN)/.install go install -ldflags '-s -w -X $(HELM_MODULE)/internal/version.version=$(HELM_VERSION) $(HELM_KUBERNETES)' $(HELM_MODULE)/cmd/helm@$(HELM_VERSION)
	mv $(BIN)/.install/helm $@

$(KUBECONFORM):
	GOBIN=$(BIN)/.install go install github.com/yannh/kubeconform/cmd/kubeconform@$(KUBECONFORM_VERSION)
	mv $(BIN)/.install/kubeconform $@

$(HELM_DOCS):
	GOBIN=$(BIN)/.install go install github.com/norwoodj/helm-docs/cmd/helm-docs@$(HELM_DOCS_VERSION)
	mv $(BIN)/.install/helm-docs $@
