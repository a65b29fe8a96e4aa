"""A job on a Flink cluster, followed over its REST: Beam itself looks once a minute, and not at whether the cluster lives."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from pipelines.engine.flink import FlinkMaster
from pipelines.engine.following import RESUME, EngineLostError, Silence
from pipelines.engine.rest import SilentError, ask
from storage.errors import DecantError

_ANSWER_SECONDS = 5
_COMES_SECONDS = 15.0
_LOOK_SECONDS = 1.0


class FlinkWatch:
    """The job of a name that was submitted after this was made.

    Raises:
        EngineLostError: Flink does not answer.
    """

    def __init__(self, master: FlinkMaster, *, job_name: str) -> None:
        self._master = master
        self._name = job_name
        self._id: str | None = None
        try:
            self._before = {job["jid"] for job in self._jobs()}
        except SilentError as error:
            raise EngineLostError(
                f"the Flink at {master.url} does not answer any more ({error}): its job manager ended, or cannot be reached, "
                f"while the run was planned. Start it again. {RESUME}"
            ) from error
        self._silence = Silence(
            what=f"the Flink at {master.url}", remedy="its job manager has ended or cannot be reached any more: start it again"
        )

    @property
    def sees_job(self) -> bool:
        """Whether the job was found."""
        return self._id is not None

    def look(self) -> bool:
        """Return whether the job has finished.

        Raises:
            EngineLostError: the job manager is silent for too long, or knows the job no more.
            DecantError: somebody cancelled the job.
            RuntimeError: the job failed, with Flink's word for it.
        """
        try:
            jobs = self._jobs()
            self._silence.over()
        except SilentError as error:
            self._silence.goes_on(str(error))
            return False
        job = next((job for job in jobs if job["jid"] == self._id), None) if self._id else self._newest(jobs)
        if job is None and self._id is not None:
            raise EngineLostError(
                f"the Flink at {self._master.url} no longer knows job {self._id}: its job manager was started again, and keeps "
                f"no jobs over that without high availability. {RESUME}"
            )
        if job is None:
            return False
        self._id = job["jid"]
        if job["state"] == "FAILED":
            raise RuntimeError(
                self._why_failed() or f"job {self._id} failed on the Flink at {self._master.url}, which does not say why"
            )
        if job["state"] == "CANCELED":
            raise DecantError(f"job {self._id} was cancelled on the Flink at {self._master.url}. {RESUME}")
        return bool(job["state"] == "FINISHED")

    def error_so_far(self) -> str:
        """Return the last error that Flink noted for the job, also where it started it again; "" where there is none."""
        return "" if self._id is None else self._why_failed()

    def cancel(self) -> None:
        """Cancel the job, also one that was not seen yet."""
        self._cancel()

    def cancel_what_comes(self) -> None:
        """Cancel the job when it comes up: Flink makes it in seconds out of a jar that it has."""
        deadline = time.monotonic() + _COMES_SECONDS
        while not self._cancel() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    def _cancel(self) -> bool:
        """Cancel the job, and return whether there was one."""
        with contextlib.suppress(SilentError):
            job = {"jid": self._id} if self._id else self._newest(self._jobs())
            if job is not None:
                ask(f"{self._master.url}/v1/jobs/{job['jid']}?mode=cancel", method="PATCH", seconds=_ANSWER_SECONDS)
                return True
        return False

    def _jobs(self) -> list[dict[str, Any]]:
        said = ask(f"{self._master.url}/v1/jobs/overview", seconds=_ANSWER_SECONDS)
        jobs = said.get("jobs", []) if isinstance(said, dict) else []
        return [job for job in jobs if job.get("name") == self._name]

    def _newest(self, jobs: list[dict[str, Any]]) -> dict[str, Any] | None:
        new = [job for job in jobs if job["jid"] not in self._before]
        return max(new, key=lambda job: job.get("start-time", 0), default=None)

    def _why_failed(self) -> str:
        try:
            said = ask(f"{self._master.url}/v1/jobs/{self._id}/exceptions", seconds=_ANSWER_SECONDS)
        except SilentError:
            return ""
        history = said.get("exceptionHistory", {}).get("entries", [])
        return str(said.get("root-exception") or (history[0].get("stacktrace", "") if history else ""))
