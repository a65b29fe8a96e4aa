"""Beam's worker pool, on one address: `python -P worker_pool_main.py HOST:PORT [--container_executable=PROGRAM]`.

Beam's own `apache_beam.runners.worker.worker_pool_main` listens on every address of the machine, and shares the port with whoever
listens there already; where each host is a machine or a container of its own that is right, and it is to be used.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils import thread_pool_executor


def main() -> None:
    """Serve until a signal ends the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--container_executable")
    arguments = parser.parse_args()
    address = arguments.address
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)])
    # Each worker is a process: `python` from the PATH, or what the program starts.
    pool = BeamFnExternalWorkerPoolServicer(use_process=True, container_executable=arguments.container_executable)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    if not server.add_insecure_port(address):
        sys.exit(f"cannot listen on {address}")
    server.start()
    logging.getLogger("decant.cluster").info("a worker pool listens on %s", address)
    signal.pause()


if __name__ == "__main__":
    main()
