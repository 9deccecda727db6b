# syntax=docker/dockerfile:1
# One image for every role: operator, proxy, cache and probe. `tests/cluster/image` builds the last stage alone, from a
# binary that cargo has made already, so that no registry is needed; keep what it takes from the build stage in /out.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# What --version says of the commit: --build-arg COMMIT=$(git rev-parse --short=12 HEAD)
ARG COMMIT=
ENV TLSFARM_COMMIT="${COMMIT}"
# crt-static: the last stage has no libc. It takes effect on this target only when --target is named.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-gnu" \
    && cargo build --locked --release --bin tlsfarm --target "$target" \
    && install -D "target/$target/release/tlsfarm" /out/tlsfarm

FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="tlsfarm" \
      org.opencontainers.image.description="TLS ingress proxies that share session-ticket keys, and their Kubernetes operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /out/tlsfarm /tlsfarm
USER 65532:65532
ENTRYPOINT ["/tlsfarm"]
