# syntax=docker/dockerfile:1
# Berth's image, for those who have Docker; "make image" makes the same without.
# Needs BuildKit, and the git history in the build context: the binary's version
# is the commit's.

ARG GO_VERSION=1.26.8

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
ENV GOCACHE=/cache
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/cache \
    go run ./hack/image -arch "$TARGETARCH" -binaries -out /out berth && mv "/out/berth-linux-$TARGETARCH" /out/berth

FROM scratch
COPY --from=build /out/berth /berth
# The controller's. Agents are started as root, by their DaemonSet.
USER 65532:65532
ENTRYPOINT ["/berth"]
LABEL org.opencontainers.image.title="berth" \
      org.opencontainers.image.description="Dynamic volume provisioner for Kubernetes: directories on nodes and NFS servers" \
      org.opencontainers.image.source="https://github.com/berth-storage/berth" \
      org.opencontainers.image.documentation="https://github.com/berth-storage/berth/blob/main/README.md" \
      org.opencontainers.image.licenses="Apache-2.0"
