# syntax=docker/dockerfile:1
# Two images of the same processes: `docker build --target cpu .` and `docker build --target gpu .`
# `--build-arg EXTRAS=s3` installs that extra of pyproject.toml as well.
# The command is `evorec`; `serve` (the default) and `worker` are what deploy/compose.yaml runs.

FROM python:3.11-slim-bookworm AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/evorec --create-home evorec
# Everything that is written goes to /var/lib/evorec (state, a volume) or /tmp (caches), so the root may be read-only.
ENV PATH=/opt/evorec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    EVOREC_STATE_DIR=/var/lib/evorec/state \
    EVOREC_LOG_FORMAT=json \
    HF_HOME=/var/lib/evorec/huggingface \
    VLLM_CACHE_ROOT=/tmp/vllm \
    VLLM_NO_USAGE_STATS=1 \
    XDG_CACHE_HOME=/tmp/cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton

FROM base AS build
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY pyproject.toml constraints.txt constraints-gpu.txt README.md LICENSE ./
COPY deploy/image/install.sh deploy/image/install.sh

FROM build AS build-cpu
ARG EXTRAS
# hadolint ignore=SC2086
RUN deploy/image/install.sh dependencies cpu /opt/evorec ${EXTRAS}
COPY shared shared
COPY service service
COPY evolver evolver
COPY deploy deploy
RUN deploy/image/install.sh package /opt/evorec

FROM build AS build-gpu
ARG EXTRAS
# hadolint ignore=SC2086
RUN deploy/image/install.sh dependencies gpu /opt/evorec ${EXTRAS}
COPY shared shared
COPY service service
COPY evolver evolver
COPY deploy deploy
RUN deploy/image/install.sh package /opt/evorec

FROM base AS gpu
# Triton compiles its launchers with the system's compiler when a kernel first runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-gpu /opt/evorec /opt/evorec
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/evorec
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=600s --retries=3 CMD ["python", "-P", "-m", "deploy.health", "service"]
# tini reaps vLLM's worker processes and passes signals on.
ENTRYPOINT ["tini", "--", "evorec"]
CMD ["serve"]

# The last stage is what a build without --target makes.
FROM base AS cpu
COPY --from=build-cpu /opt/evorec /opt/evorec
USER 10001:10001
WORKDIR /var/lib/evorec
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --retries=3 CMD ["python", "-P", "-m", "deploy.health", "service"]
ENTRYPOINT ["tini", "--", "evorec"]
CMD ["serve"]
