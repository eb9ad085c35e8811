"""Manifests of launch/kubernetes: they are valid, and a trial that has ended is never repeated."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from gptoss20b.stopping import ExitCode
from tests.support.guides import read_guide
from tests.support.paths import ROOT
from tests.support.pods import (
    MANIFESTS,
    Resource,
    container_of,
    pod_environment,
    read_resources,
    render,
    render_job,
)

# podFailurePolicy is stable since 1.31.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
RESOURCE_FILES = sorted(path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml")
OVERLAYS = {"nvidia": 1, "amd": 1, "nvidia-rdma": 2, "amd-rdma": 2}  # nodes
BASE = "base"
ENDED = {ExitCode.NOT_CONVERGED, ExitCode.DIVERGED, ExitCode.NOT_COMPLIANT}


def overlay(name: str) -> Resource:
    """Return the Job of an overlay, or of the file that they all share, which needs no kubectl."""
    if name == BASE:
        (job,) = read_resources((MANIFESTS / "trial" / "job.yaml").read_text())
        return job
    return render_job(MANIFESTS / "overlays" / name)


def pod_of(job: Resource) -> Any:
    return job["spec"]["template"]["spec"]


def with_component(tmp_path: Path, component: str) -> Resource:
    """Return the Job of the nvidia overlay with one more component."""
    relative = os.path.relpath(MANIFESTS, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{relative}/overlays/nvidia]\ncomponents: [{relative}/components/{component}]\n"
    )
    return render_job(tmp_path)


def assert_valid(text: str) -> list[str]:
    """Validate every resource strictly, and return their kinds."""
    resources = read_resources(text)
    for resource in resources:
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)
    return [resource["kind"] for resource in resources]


# --- validity


@pytest.mark.parametrize("path", RESOURCE_FILES, ids=lambda path: path.relative_to(MANIFESTS).as_posix())
def test_a_file_is_valid_and_needs_the_core_api_alone(path: Path) -> None:
    assert set(assert_valid(path.read_text())) <= {"Job", "PersistentVolumeClaim", "Service"}


def test_a_misspelt_field_is_invalid() -> None:
    text = (MANIFESTS / "trial" / "job.yaml").read_text().replace("podFailurePolicy:", "podFailurPolicy:")
    with pytest.raises(kubernetes_validate.ValidationError, match="podFailurPolicy"):
        assert_valid(text)


@pytest.mark.parametrize("folder", ["shared", "data", *(f"overlays/{name}" for name in OVERLAYS)])
def test_what_kustomize_renders_is_valid(folder: str) -> None:
    assert assert_valid(render(MANIFESTS / folder))


# --- the commands of the documentation

# kubectl without a cluster: `apply -k` renders, `create` prints what it would create.
OFFLINE = """
kubectl() {
    case "$1" in
        apply) command kubectl kustomize "$3" > /dev/null ;;
        wait) ;;
        create) if [[ "$2" == -f ]]; then echo ---; cat; else echo "$*" >&2; fi ;;
        *) command kubectl "$@" ;;
    esac
}
"""


def test_the_commands_of_the_guide_create_one_job_for_each_trial() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    guide = read_guide(ROOT / "docs" / "gpu-node.md")
    block = guide.split("<!-- kubernetes -->\n```bash\n")[1].split("```")[0]
    assert "{1..10}" in block
    script = f"set -euo pipefail\n{OFFLINE}\n{block.replace('{1..10}', '{1..3}')}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert assert_valid(done.stdout) == ["Job"] * 3
    jobs = read_resources(done.stdout)
    assert len({pod_environment(job, 0)["LOGDIR"] for job in jobs}) == 3
    assert [container_of(job)["args"][-1] for job in jobs] == [f"SEED_BASE={seed}" for seed in (1234, 1235, 1236)]
    (configmap,) = (source["configMapRef"] for source in container_of(jobs[0])["envFrom"])
    assert done.stderr.startswith(f"create configmap {configmap['name']} --from-literal=")


# --- a trial


@pytest.mark.parametrize(("name", "nodes"), OVERLAYS.items())
def test_a_trial_has_a_pod_for_each_node_of_its_configuration(name: str, nodes: int) -> None:
    job = overlay(name)
    config = (ROOT / pod_environment(job, 0)["CONFIG"]).read_text()
    exported = dict(re.findall(r"^export (\w+)=(\S+)$", config, re.MULTILINE))
    assert exported["DGXNNODES"] == str(nodes)
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (nodes, nodes, "Indexed")
    vendor = name.removesuffix("-rdma")
    assert container_of(job)["resources"]["limits"][f"{vendor}.com/gpu"] == int(exported["DGXNGPU"])


@pytest.mark.parametrize("name", [BASE, "nvidia-rdma", "amd-rdma"])
def test_nodes_meet_at_the_leaders_name(name: str) -> None:
    job = overlay(name)
    (service,) = read_resources((MANIFESTS / "shared" / "service.yaml").read_text())
    # Kubernetes gives a pod the name <job>-<index>.<service> if its subdomain is the service's name.
    assert service["spec"]["clusterIP"] == "None" and service["metadata"]["name"] == pod_of(job)["subdomain"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    for index in (0, 1):
        variables = pod_environment(job, index)
        assert variables["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
        assert variables["NODE_RANK"] == variables["JOB_COMPLETION_INDEX"] == str(index)
        assert variables["LOGDIR"] == f"/results/{job['metadata']['name']}"


@pytest.mark.parametrize("name", [BASE, *OVERLAYS])
def test_a_trial_that_has_ended_is_never_repeated(name: str) -> None:
    spec = overlay(name)["spec"]
    assert spec["backoffLimit"] == 0 and spec["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["containerName"]) == ("FailJob", "trial")
    assert set(rule["onExitCodes"]["values"]) == ENDED


def test_with_resume_only_a_trial_that_has_not_ended_gets_new_pods(tmp_path: Path) -> None:
    plain, resuming = overlay("nvidia"), with_component(tmp_path, "resume")
    assert not any(argument.startswith("RESUME=") for argument in container_of(plain)["args"])
    assert container_of(resuming)["args"] == [*container_of(plain)["args"], "RESUME=1", "SAVE_INTERVAL=30min"]
    first, second = resuming["spec"]["podFailurePolicy"]["rules"]
    assert [first] == plain["spec"]["podFailurePolicy"]["rules"]
    assert second["action"] == "Ignore" and second["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert resuming["spec"]["backoffLimit"] > 0
    assert_valid(render(tmp_path))


@pytest.mark.parametrize("name", [BASE, *OVERLAYS])
def test_a_pod_runs_as_the_images_user_and_writes_to_the_results_alone(name: str) -> None:
    job = overlay(name)
    (uid,) = re.findall(r"^USER (\d{2,})$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert pod_of(job)["securityContext"]["runAsNonRoot"] is True
    assert pod_of(job)["securityContext"]["runAsUser"] == int(uid)
    capabilities = container_of(job)["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    assert capabilities.get("add", []) == (["IPC_LOCK"] if name.endswith("-rdma") else [])
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container_of(job)["volumeMounts"]}
    assert mounts == {"/data": True, "/results": False, "/dev/shm": False}
    (memory,) = (volume for volume in pod_of(job)["volumes"] if "emptyDir" in volume)
    assert memory["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_trials_on_several_nodes_use_the_hosts_network(name: str) -> None:
    pod = pod_of(overlay(name))
    rdma = name.endswith("-rdma")
    assert pod.get("hostNetwork", False) is rdma
    assert pod.get("dnsPolicy") == ("ClusterFirstWithHostNet" if rdma else None)


def test_a_privileged_container_drops_the_caches_before_the_trial() -> None:
    job = overlay("nvidia")
    (clearing,) = pod_of(job)["initContainers"]
    assert clearing["securityContext"]["privileged"] is True and clearing["image"] == container_of(job)["image"]
    assert (ROOT / clearing["command"][-1]).is_file()
    assert "CLEAR_CACHES=done" in container_of(job)["args"]


def test_run_local_accepts_caches_that_its_caller_has_dropped(tmp_path: Path) -> None:
    variables = {"PATH": os.environ["PATH"], "LOGDIR": str(tmp_path), "DATADIR": "/no/such/folder"}
    command = "source config_B200_1x8.sh && NEXP=1 CLEAR_CACHES=done ./run_local.sh"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "CLEAR_CACHES" not in done.stderr
