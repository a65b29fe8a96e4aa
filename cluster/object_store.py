"""An S3-compatible store on loopback: moto's server, which keeps objects in its memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.processes import Service

BUCKET = "decant"


def object_store(address: str) -> Service:
    """Return the store's process."""
    host, _, port = address.rpartition(":")
    command = (sys.executable, "-P", "-W", "ignore", "-m", "moto.server", "-H", host, "-p", port)
    return Service(name="object-store", command=command, address=address, host="store")


def store_environment(address: str) -> dict[str, str]:
    """Return the variables with which S3 clients find the store."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # A profile that a person works with has an endpoint and keys of its own.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def _client(address: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://{address}",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )


def make_bucket(address: str) -> None:
    """Make the bucket of the cluster."""
    _client(address).create_bucket(Bucket=BUCKET)


def put_files(address: str, *, folder: Path, prefix: str) -> int:
    """Upload the files of a folder and return their bytes."""
    client = _client(address)
    num_bytes = 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder).as_posix()}")
        num_bytes += file.stat().st_size
    return num_bytes


def object_names(address: str, *, prefix: str) -> Iterator[str]:
    """Yield the names of the objects below a prefix, without it."""
    for page in _client(address).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
        yield from (entry["Key"].removeprefix(f"{prefix}/") for entry in page.get("Contents", ()))


def objects(address: str, *, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the objects below a prefix, by their names behind it."""
    client = _client(address)
    for name in object_names(address, prefix=prefix):
        yield name, client.get_object(Bucket=BUCKET, Key=f"{prefix}/{name}")["Body"].read()
