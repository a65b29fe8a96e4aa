"""Reports of processes that tests of the doctor judge."""

from __future__ import annotations

from pipelines.doctor.clocks import Offset
from pipelines.doctor.findings import Heard
from pipelines.doctor.report import Device, Machine, ProcessReport, Reach, StoreReach

GIB = 1 << 30
PACKAGES = {
    "decant": "0.1.0",
    "torch": "2.15.0",
    "torchvision": "0.29.2",
    "timm": "1.0.31",
    "transformers": "5.23.0",
    "tokenizers": "0.23.3",
    "numpy": "2.4.6",
    "pillow": "12.3.0",
    "apache-beam": "2.77.0",
}


def machine(**changes):
    healthy = {
        "cpu_threads": 8,
        "memory_bytes": 32 * GIB,
        "memory_available_bytes": 24 * GIB,
        "temp_folder": "/tmp",
        "temp_free_bytes": 50 * GIB,
        "shared_memory_bytes": 16 * GIB,
    }
    return Machine(**{**healthy, **changes})


def store(**changes):
    return StoreReach(**{"url": "s3://b/c", "creates_at_once": True, "read_seconds": 0.01, "write_seconds": 0.02, **changes})


def report(pid=1, host="a", *, packages=None, **changes):
    """What a healthy process says, but for some changes."""
    healthy = {
        "address": "10.0.0.1",
        "started": 1000.0,
        "now": 1001.0,
        "python": "3.11.9",
        "code": "0123456789abcdef",
        "machine": machine(),
        "device": Device(torch_threads=8, asked="cpu", found="cpu"),
        "cache": store(),
        "source": Reach(num_read=2),
        "teacher": Reach(num_read=1),
    }
    return ProcessReport(host=host, pid=pid, packages={**PACKAGES, **(packages or {})}, **{**healthy, **changes})


def heard(*workers, here=None, offsets=None, **changes):
    """What was heard; clocks agree."""
    offsets = [Offset(least=-0.1, most=0.1)] * len(workers) if offsets is None else offsets
    return Heard(here=here or report(host="submitter"), workers=workers, offsets=offsets, **{"local": False, **changes})


def levels(findings):
    return [finding.level for finding in findings]
