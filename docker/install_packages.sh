#!/usr/bin/env bash
# Install the pinned packages in a virtual environment on top of the base image's Python, which is not modified.
# usage: install_packages.sh VENV REQUIREMENTS
set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 2
}

(($# == 2)) || die "arguments: got $#, expected 2: install_packages.sh VENV REQUIREMENTS"
venv=$1
requirements=$2
python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
    die "BASE_IMAGE: python3 of the base image has no torch." \
        "Use an image with PyTorch, for example one of the two at the top of the Dockerfile"

# Install with the base image's pip: some base images cannot put pip into a virtual environment.
python3 -m venv --without-pip "$venv"
# Append the base image's packages to the search path, after ours. --system-site-packages does not work here: it misses
# the packages of a base that is itself a virtual environment (AMD's), and it adds those in the user's home.
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python3 -c 'import site; [print(f"import site; site.addsitedir({folder!r})") for folder in site.getsitepackages()]' \
    > "$packages/base_image.pth"

# NVIDIA's images set PIP_CONSTRAINT to the versions of their own packages, which are not replaced here.
unset PIP_CONSTRAINT
install=("$venv/bin/python" -m pip install --no-input --disable-pip-version-check)
# Only the pinned wheels, verified by hash. --ignore-installed also installs a version that the base has: pinned packages
# must never come from the base.
install+=(--no-deps --require-hashes --only-binary :all: --ignore-installed)
"${install[@]}" --requirement "$requirements"
