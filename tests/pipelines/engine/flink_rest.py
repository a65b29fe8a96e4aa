"""The part of Flink's REST that is asked, as a server of this process that says what a test wants."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FlinkRest:
    """What the server says, as Flink 1.20 says it."""

    def __init__(self, url):
        self.url = url
        self.version = "1.20.5"
        self.total, self.free = 4, 3
        self.jobs = []
        self.exceptions = {}
        self.cancelled = []
        self.jars = []
        self.when_asked_to_run = lambda: None

    @property
    def address(self):
        return self.url.removeprefix("http://")

    def answer(self, path):
        if path == "/v1/config":
            return {"refresh-interval": 3000, "timezone-name": "UTC", "flink-version": self.version, "flink-revision": "x"}
        if path == "/v1/overview":
            return {"taskmanagers": 2, "slots-total": self.total, "slots-available": self.free, "jobs-running": 0}
        if path == "/v1/jobs/overview":
            return {"jobs": self.jobs}
        for job in self.jobs:
            if path == f"/v1/jobs/{job['jid']}/exceptions":
                return self.exceptions
        return None

    def add_job(self, jid, name, state="RUNNING"):
        job = {"jid": jid, "name": name, "state": state, "start-time": len(self.jobs), "end-time": -1}
        self.jobs.append(job)
        return job


@contextmanager
def flink_rest():
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            said = rest.answer(self.path)
            self.say({"errors": ["Not found."]} if said is None else said, status=404 if said is None else 200)

        def do_PATCH(self):
            rest.cancelled.append(self.path)
            self.say({}, status=202)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/jars/upload":
                rest.jars.append(f"{len(rest.jars)}_beam.jar")
                self.say({"filename": f"/uploads/{rest.jars[-1]}", "status": "success"})
            else:
                self.say({"jobid": "a1"}, status=rest.when_asked_to_run() or 200)

        def do_DELETE(self):
            rest.jars.remove(self.path.removeprefix("/v1/jars/"))
            self.say({})

        def say(self, data, *, status=200):
            data = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    rest = FlinkRest(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield rest
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
