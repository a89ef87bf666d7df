# syntax=docker/dockerfile:1.10
# The image of everything that is ours: command line, flows, workers, and Prefect's server with what it needs for Redis.
#
#     docker build -t anomaly-times .                                        # every model (PyTorch for processors)
#     docker build -t anomaly-times:light --build-arg EXTRAS=nixtla,production .   # without PyTorch and Ray
#     docker build -t anomaly-times:ray --target ray .                       # nodes of a Ray cluster

ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
# What is installed beside the package itself: see [project.optional-dependencies].
ARG EXTRAS=nixtla,chronos,ray,production
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/anomaly-times
WORKDIR /src
RUN pip install --root-user-action=ignore uv==0.13.9 && uv venv "$VIRTUAL_ENV"
# Which build of PyTorch is a choice of the machine, so constraints.txt does not pin it.
RUN case ",$EXTRAS," in *,chronos,*) uv pip install --no-deps "torch==$TORCH" --index-url "$TORCH_INDEX" ;; esac
# Dependencies before the package, so that a change of ours leaves this layer as it is. Hashes of constraints.txt are
# checked.
COPY pyproject.toml constraints.txt ./
RUN set -eu; for extra in $(echo "$EXTRAS" | tr , ' '); do set -- "$@" --extra "$extra"; done; \
    uv pip install -r pyproject.toml "$@" -c constraints.txt
COPY README.md LICENSE ./
COPY anomaly_times anomaly_times
RUN uv pip install --no-deps .

FROM python:${PYTHON} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Anomaly Times" \
      org.opencontainers.image.description="Forecasting and anomaly detection for Prometheus-compatible metrics" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# LightGBM's; tini ends children of a process that is process 1 of a container.
RUN apt-get update -q \
    && apt-get install -q -y --no-install-recommends libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1001 anomaly && useradd --uid 1001 --gid 1001 --no-create-home --home-dir /tmp anomaly \
    # A new volume takes its owner from here.
    && install -d -o 1001 -g 1001 /var/lib/anomaly-times /dashboards /rules
COPY --from=build /opt/anomaly-times /opt/anomaly-times
# What Prefect's own image begins with, and so its Helm charts expect.
RUN mkdir /opt/prefect && printf '#!/bin/sh\nexec "$@"\n' > /opt/prefect/entrypoint.sh && chmod 755 /opt/prefect/entrypoint.sh
ENV PATH=/opt/anomaly-times/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 1001:1001
WORKDIR /work
# Whether what it reads from answers; services that are something else (Prefect's server, Ray) have checks of their own.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 CMD ["at", "doctor", "--read-only"]
ENTRYPOINT ["tini", "--"]
CMD ["at", "--help"]

FROM runtime AS ray
# Ray needs a shared memory larger than Docker's default: `--shm-size` or a tmpfs on /dev/shm.
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["ray", "health-check"]
CMD ["ray", "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false"]

# What a build without --target makes.
FROM runtime
