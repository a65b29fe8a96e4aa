"""The deployment texts, read: what tests compare."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "docker" / "Dockerfile"
MANIFESTS = sorted((ROOT / "cluster" / "kubernetes").glob("*.yaml"))
GUIDE = ROOT / "docs" / "cluster.md"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a Dockerfile: its base, and its instructions with their arguments."""

    base: str
    lines: list[tuple[str, str]]

    def values(self, instruction: str) -> list[str]:
        return [value for word, value in self.lines if word == instruction]


def dockerfile_stages() -> tuple[dict[str, str], dict[str, Stage]]:
    """The build arguments with defaults before the first stage, and the stages by name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    arguments, stages, name = {}, {}, ""
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            stages[name] = Stage(base=base, lines=[])
        elif not stages:
            key, _, default = value.partition("=")
            arguments[key] = default
        else:
            stages[name].lines.append((instruction, value))
    return arguments, stages


def objects():
    """Every object of the manifests, with the name of its file."""
    return [(path.name, one) for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]


def of_kind(kind):
    """The objects of a kind by their names."""
    return {one["metadata"]["name"]: one for _, one in objects() if one["kind"] == kind}


def pods():
    """What pods are made of, by the name of their Deployment or Job."""
    return {name: one["spec"]["template"] for kind in ("Deployment", "Job") for name, one in of_kind(kind).items()}


def containers():
    """Every container of every pod, by the pod's and its own name."""
    return {(pod, one["name"]): one for pod, template in pods().items() for one in template["spec"]["containers"]}


def flink_properties():
    """Flink's configuration, as its containers get it."""
    return yaml.safe_load(of_kind("ConfigMap")["flink-config"]["data"]["FLINK_PROPERTIES"])


def pinned(package):
    """The version of a package that constraints.txt holds."""
    (version,) = re.findall(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return version
