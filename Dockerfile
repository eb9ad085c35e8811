# Container image: a vendor's unmodified PyTorch image, with this project and its pinned packages on top.
#
#   docker build --build-arg GIT_COMMIT="$(git describe --always --dirty --abbrev=40 --exclude='*')" -t gptoss20b .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v /data:/data:ro -v "$PWD/results:/results" -e LOGDIR=/results/1 \
#       gptoss20b bash -c 'source config_B200_1x8.sh && ./run_and_time.sh'
#
# BASE_IMAGE provides torch, Transformer Engine, NumPy and their dependencies. It needs Python 3.12 (for megatron-core
# 0.19.2) and torch 2.11 or later. By their published contents, two images qualify. The build steps were tested without
# a container, and not on these images:
#
#   NVIDIA (default): nvcr.io/nvidia/pytorch:26.05-py3, for amd64 and arm64. Python 3.12, torch 2.12.0a0+5aff3928d8.nv26.05,
#   NumPy 2.1.0, CUDA 13.2.1. Sources: the output of users of the image; for CUDA their quotes of NVIDIA's release notes.
#   No public source gives its Transformer Engine version. The digest is recorded in public projects, once from the registry.
#   Inventec's v6.0 code for this benchmark builds on 26.04, with its own Transformer Engine (2.15).
#
#   AMD: --build-arg BASE_IMAGE=docker.io/rocm/primus:v26.7. Python 3.12.3, torch 2.12.0+rocm10.0.0, NumPy 2.5.3,
#   Transformer Engine 2.17.0+rocm10.0.0, ROCm 10.0.0, in the virtual environment /opt/venv. Sources: Primus's release
#   notes and its Dockerfile.primus-v26.7. No public source gives its digest: take it from your own pull.
#
# The last build step checks any other image, and fails if something does not fit.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.05-py3@sha256:222d8b18e671be5c3ef91cb41727a2572a0b23f59ded6c39f373a96946f6f2ba
FROM ${BASE_IMAGE}

USER 0
WORKDIR /workspace/gptoss20b

# Packages first, so that a change of code does not reinstall them. The mount keeps pip's cache out of the image.
COPY docker/install_packages.sh docker/
COPY requirements/container.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip docker/install_packages.sh /opt/gptoss20b requirements/container.txt
ENV PATH=/opt/gptoss20b/bin:${PATH}

ARG GIT_COMMIT
COPY docker/check_commit.sh docker/
RUN docker/check_commit.sh "${GIT_COMMIT}"
# The harness records it in config.json. It cannot ask git: the image has no .git.
ENV GIT_COMMIT=${GIT_COMMIT}

# The default user. A container may run as any other user id (--user), so that results belong to whoever started it.
RUN useradd --no-log-init --uid 10001 --no-create-home --home-dir /home/gptoss20b --shell /bin/bash gptoss20b
# For user ids without an entry in /etc/passwd: torch and Triton look up the user name and home to place their caches.
ENV HOME=/home/gptoss20b \
    USER=gptoss20b \
    LOGNAME=gptoss20b \
    XDG_CACHE_HOME=/home/gptoss20b/.cache \
    TORCHINDUCTOR_CACHE_DIR=/home/gptoss20b/.cache/torchinductor \
    TRITON_CACHE_DIR=/home/gptoss20b/.cache/triton

COPY . .
RUN docker/open_to_all.sh /workspace/gptoss20b

# No downloads at run time.
ENV HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1

USER 10001
RUN docker/check_image.sh requirements/container.txt

# Replace NVIDIA's entry point, which prints a banner to stdout, where the log goes. It also sets the library path for the
# host's driver. BASH_ENV of the image does the same, so start every command through bash, which reads BASH_ENV.
ENTRYPOINT ["/bin/bash", "-c", "exec \"$@\"", "bash"]
CMD ["bash"]

ARG BASE_IMAGE
LABEL org.opencontainers.image.title="gptoss20b" \
      org.opencontainers.image.description="MLPerf Training gpt_oss_20b: harness and compliance checks" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
