#!/usr/bin/env bash
# The pinned packages, in a virtual environment over the Python of the base image, which stays as it is.
# usage: install_packages.sh VENV REQUIREMENTS
set -euo pipefail

refuse() {
    echo "error: $1" >&2
    exit 2
}

(($# == 2)) || refuse "arguments: got $#, expected 2: install_packages.sh VENV REQUIREMENTS"
venv=$1
requirements=$2
python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
    refuse "BASE_IMAGE: its python3 has no torch, expected an image with PyTorch. The head of the Dockerfile names two"

# The pip that installs is the base's: not every base image can put one into a virtual environment.
python3 -m venv --without-pip "$venv"
# The base's packages are seen after ours. Named one by one, since --system-site-packages leaves out those of a base that is a
# virtual environment itself (AMD's), and lets in what lies in the home of whoever runs the container.
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python3 -c 'import site; [print(f"import site; site.addsitedir({folder!r})") for folder in site.getsitepackages()]' \
    > "$packages/base_image.pth"

# NVIDIA's images hold every installation to the versions of their own packages; here nothing of theirs is replaced.
unset PIP_CONSTRAINT
install=("$venv/bin/python" -m pip install --no-input --disable-pip-version-check)
# Exactly these files, built by their authors, and also where the base has the same version: what is checked is what runs.
install+=(--no-deps --require-hashes --only-binary :all: --ignore-installed)
"${install[@]}" --requirement "$requirements"
