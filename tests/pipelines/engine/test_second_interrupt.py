"""An interrupt while Beam falls after the first one ends the process at once: torn out of its end it would wait for ever."""

import subprocess
import sys

FALLING = """
import os, signal, time
from pipelines.engine.local import watched_workers

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)

with watched_workers():
    try:
        interrupt()
    except KeyboardInterrupt:
        print("falling", flush=True)
        try:
            interrupt()
        finally:
            print("torn out", flush=True)
"""


def test_a_second_interrupt_ends_the_process_at_once():
    ended = subprocess.run([sys.executable, "-c", FALLING], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout) == (130, "falling\n")
    assert ended.stderr.endswith(
        "decant: interrupted twice, ended at once; what was committed is whole: run the same command again to go on\n"
    )
