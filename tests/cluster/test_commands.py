import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.assembly import submission_arguments, take_down, write_environment
from cluster.errors import ClusterError
from cluster.ports import free_address
from cluster.processes import Processes
from tests.cluster.support import server

ROOT = Path(__file__).parents[2]


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "cluster", *words],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def cluster(tmp_path):
    """A cluster as `up` leaves it, with an ordinary server in the place of Flink."""
    processes = Processes.create(tmp_path / "up")
    address = free_address("127.0.0.1")
    processes.start(server(address, name="job-manager"))
    processes.wait_for_port("job-manager")
    processes.facts = {
        "flink": f"http://{address}",
        "store": "http://127.0.0.1:9",
        "bucket": "s3://decant",
        "pool": "worker-pool:50000",
        "jar": "/downloads/a jar.jar",
        "hosts": "2",
        "workers_per_host": "3",
        "complete": "yes",
    }
    processes.save()
    yield processes
    processes.stop_all()


def test_where_nothing_is_up_status_and_down_say_so(tmp_path):
    status = run("status", "--folder", str(tmp_path))
    assert (status.returncode, status.stdout) == (1, f"no cluster is up in {tmp_path}\n")
    down = run("down", "--folder", str(tmp_path))
    assert (down.returncode, down.stdout) == (0, f"no cluster is up in {tmp_path}\n")


def test_up_twice_says_so_and_down_ends_it(cluster):
    again = run("up", "--folder", str(cluster.folder))
    assert again.returncode == 0, again.stderr
    assert "is up already" in again.stdout
    assert "decant label CONFIG $DECANT_ON_CLUSTER" in again.stdout
    down = run("down", "--folder", str(cluster.folder))
    assert (down.returncode, down.stdout) == (0, "1 processes ended\n")
    assert not cluster.is_alive("job-manager")


def test_a_cluster_whose_up_was_killed_is_taken_down_first(cluster):
    del cluster.facts["complete"]
    cluster.save()
    for word in ("up", "status"):
        found = run(word, "--folder", str(cluster.folder))
        assert (found.returncode, found.stderr) == (1, "")
        assert "is up in parts: what brought it up was killed; run `python -m cluster down --folder" in found.stdout
    assert run("down", "--folder", str(cluster.folder)).stdout == "1 processes ended\n"


def test_a_cluster_whose_folder_was_removed_is_ended_all_the_same(cluster):
    shutil.rmtree(cluster.folder)
    down = run("down", "--folder", str(cluster.folder))
    assert (down.returncode, down.stdout) == (0, "1 processes ended\n")
    assert not cluster.is_alive("job-manager")
    assert not cluster.folder.exists()


def test_a_service_that_ended_shows(cluster):
    cluster.stop("job-manager")
    status = run("status", "--folder", str(cluster.folder))
    assert status.returncode == 1
    assert "job-manager" in status.stdout
    assert "ended" in status.stdout
    assert "Flink does not answer" in status.stdout
    again = run("up", "--folder", str(cluster.folder))
    assert again.returncode == 1
    assert "job-manager ended; run `python -m cluster down` first" in again.stdout


def test_what_is_missing_is_said_before_anything_is_downloaded_or_started(tmp_path):
    words = ["up", "--folder", str(tmp_path / "up"), "--downloads", str(tmp_path / "downloads")]
    found = run(*words, PATH=str(tmp_path))
    assert found.returncode == 1
    assert found.stderr.startswith("error: java is not on the PATH; install a JDK")
    (tmp_path / "java").touch(mode=0o755)
    found = run(*words, PATH=str(tmp_path))
    assert found.returncode == 1
    assert found.stderr.startswith("error: mvn is not on the PATH; install Maven")
    assert Processes.find(tmp_path / "up") is None
    assert not (tmp_path / "downloads").exists()


def test_a_jar_that_is_not_there_is_named(tmp_path):
    (tmp_path / "java").touch(mode=0o755)
    jar = str(tmp_path / "none.jar")
    found = run("up", "--folder", str(tmp_path / "up"), "--job-server-jar", jar, PATH=str(tmp_path))
    assert found.returncode == 1
    assert "none.jar: there is no such file" in found.stderr


def test_a_pipeline_goes_to_flink_as_one_jar_or_through_the_job_server(cluster):
    words = submission_arguments(cluster, through_job_server=False)
    assert "--flink_submit_uber_jar" in words
    assert "--parallelism=6" in words
    assert "--sdk_worker_parallelism=3" in words
    with pytest.raises(ClusterError, match="--job-server"):
        submission_arguments(cluster, through_job_server=True)
    cluster.facts["job_endpoint"] = "127.0.0.1:8099"
    words = submission_arguments(cluster, through_job_server=True)
    assert words[:2] == ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:8099"]
    assert "--environment_config=worker-pool:50000" in words


def test_a_shell_learns_how_to_label_on_the_cluster(cluster):
    path = write_environment(cluster, environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"})
    script = f". {path}; echo $AWS_ENDPOINT_URL $OMP_NUM_THREADS $AWS_PROFILE; eval set -- $DECANT_ON_CLUSTER; echo $#"
    environment = {"PATH": os.environ["PATH"], "AWS_PROFILE": "mine"}
    said = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout.split("\n")
    assert said[0].split() == ["http://127.0.0.1:9"]
    assert int(said[1]) == len(submission_arguments(cluster, through_job_server=False))
    # It would mislead where nothing answers any more.
    take_down(cluster.folder)
    assert not path.exists()


def test_taking_down_what_is_not_up_is_no_error(tmp_path):
    assert take_down(tmp_path) == 0


@pytest.mark.parametrize("option", ["--hosts", "--workers-per-host"])
def test_a_cluster_of_nothing_is_refused(option):
    found = run("up", option, "0")
    assert found.returncode == 2
    assert "0 is not 1 or more" in found.stderr
