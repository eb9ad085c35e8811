# The image of this harness: a vendor's PyTorch image, which stays as it is, and this project over it.
#
#   docker build --build-arg GIT_COMMIT="$(git describe --always --dirty --abbrev=40 --exclude='*')" -t gptoss20b .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v /data:/data:ro -v "$PWD/results:/results" -e LOGDIR=/results/1 \
#       gptoss20b bash -c 'source config_B200_1x8.sh && ./run_and_time.sh'
#
# BASE_IMAGE brings torch, Transformer Engine, NumPy and what they need. By their published contents two fit this code (Python
# 3.12, torch 2.11 or later, hence megatron-core 0.19.2); the steps below were tested without a container, on neither:
#
#   NVIDIA, the default: nvcr.io/nvidia/pytorch:26.05-py3. Python 3.12, torch 2.12.0a0+5aff3928d8.nv26.05, CUDA 13.2.1,
#   NumPy 2.1.0 (as users of the image printed them, CUDA as they quote NVIDIA's release notes 26.05; the version of its
#   Transformer Engine was found in no public source). amd64 and arm64. The digest is what public projects recorded, one
#   of them from the registry. Inventec's v6.0 code for this benchmark builds on 26.04, with its own Transformer Engine (2.15).
#
#   AMD: --build-arg BASE_IMAGE=docker.io/rocm/primus:v26.7. Python 3.12.3, torch 2.12.0+rocm10.0.0, Transformer Engine
#   2.17.0+rocm10.0.0, NumPy 2.5.3, ROCm 10.0.0, in a virtual environment /opt/venv (Primus's release notes and its
#   Dockerfile.primus-v26.7). Its digest was found in no public source: take it from your own pull.
#
# A tag of another release is checked by the last step: it fails where something does not fit.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.05-py3@sha256:222d8b18e671be5c3ef91cb41727a2572a0b23f59ded6c39f373a96946f6f2ba
FROM ${BASE_IMAGE}

USER 0
WORKDIR /workspace/gptoss20b

# Packages first: they stay in the build cache when only the code changes. The cache of pip is no part of the image.
COPY docker/install_packages.sh docker/
COPY requirements/container.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip docker/install_packages.sh /opt/gptoss20b requirements/container.txt
ENV PATH=/opt/gptoss20b/bin:${PATH}

ARG GIT_COMMIT
COPY docker/check_commit.sh docker/
RUN docker/check_commit.sh "${GIT_COMMIT}"
# The harness reads it into config.json: there is no .git in the image.
ENV GIT_COMMIT=${GIT_COMMIT}

# A container may run as any user, known to the image or not (--user), so that results belong to who started it.
RUN useradd --no-log-init --uid 10001 --no-create-home --home-dir /home/gptoss20b --shell /bin/bash gptoss20b
# Without a line in /etc/passwd the name and the home come from here; torch and Triton ask for both to find their caches.
ENV HOME=/home/gptoss20b \
    USER=gptoss20b \
    LOGNAME=gptoss20b \
    XDG_CACHE_HOME=/home/gptoss20b/.cache \
    TORCHINDUCTOR_CACHE_DIR=/home/gptoss20b/.cache/torchinductor \
    TRITON_CACHE_DIR=/home/gptoss20b/.cache/triton

COPY . .
RUN docker/open_to_all.sh /workspace/gptoss20b

# Nothing is fetched at run time.
ENV HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1

USER 10001
RUN docker/check_image.sh requirements/container.txt

# NVIDIA's own entry point writes a banner to stdout, where the log goes. What it does beside that is in BASH_ENV, which sets
# the library path for the driver at hand: a bash reads it, also before a command that is none.
ENTRYPOINT ["/bin/bash", "-c", "exec \"$@\"", "bash"]
CMD ["bash"]

ARG BASE_IMAGE
LABEL org.opencontainers.image.title="gptoss20b" \
      org.opencontainers.image.description="MLPerf Training gpt_oss_20b: harness and compliance checks" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
