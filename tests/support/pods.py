"""Manifests of launch/kubernetes, rendered without a cluster, and the environment that Kubernetes gives their pods."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.paths import ROOT

MANIFESTS = ROOT / "launch" / "kubernetes"
Resource = dict[str, Any]


def read_resources(text: str) -> list[Resource]:
    """Return the resources of a YAML stream."""
    return [resource for resource in yaml.safe_load_all(text) if resource]


@functools.cache
def render(folder: Path) -> str:
    """Return what `kubectl kustomize` prints. Skip the test without kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, so the manifests cannot be rendered")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render_job(folder: Path) -> Resource:
    """Return the only resource of an overlay, a Job."""
    (job,) = read_resources(render(folder))
    assert job["kind"] == "Job"
    return job


def container_of(job: Resource) -> Resource:
    """Return the container that runs the trial."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def pod_environment(job: Resource, index: int) -> dict[str, str]:
    """Return the variables of the pod with this completion index, as the Job controller and the kubelet set them."""
    fields = {
        "metadata.labels['batch.kubernetes.io/job-name']": job["metadata"]["name"],
        "metadata.annotations['batch.kubernetes.io/job-completion-index']": str(index),
    }
    variables: dict[str, str] = {}
    for entry in container_of(job).get("env", []):
        if "value" in entry:
            value = re.sub(r"\$\((\w+)\)", lambda name: variables.get(name[1], name[0]), entry["value"])
        else:
            value = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        variables[entry["name"]] = value
    # The controller appends this variable, so that no other one can refer to it.
    return variables | {"JOB_COMPLETION_INDEX": str(index)}
