"""Real peers as processes in a workplace of the demo: br, MinIO."""

import json
import os
import subprocess
import unittest
import urllib.request

from certificates import Plain
from parts import ROOT, Failure, free_port, wait_until


def program(peer):
    """Where `make interop-build` put a peer; without it the test is left out."""
    asked = subprocess.run([ROOT / "scripts" / "interop", "path", peer], capture_output=True, text=True)
    if asked.returncode != 0:
        raise unittest.SkipTest(asked.stderr.strip())
    return asked.stdout.strip()


class Minio:
    """An S3 server with one bucket."""

    BUCKET, KEY = "logs", "miniotestkey"

    def __init__(self, place):
        self.program = program("minio")
        self.addr = f"127.0.0.1:{free_port()}"
        drive = place.path("minio-drive")
        # MinIO takes a folder of its drive for a bucket.
        (drive / self.BUCKET).mkdir(parents=True)
        self.place, self.drive = place, drive

    def start(self):
        environment = {
            "MINIO_ROOT_USER": self.KEY, "MINIO_ROOT_PASSWORD": self.KEY,
            "MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "MINIO_CI_CD": "1",
        }
        self.process = self.place.spawn(
            "minio", "env", *(f"{k}={v}" for k, v in environment.items()),
            self.program, "server", "--address", self.addr, self.drive,
        )
        wait_until("MinIO serves", 60, self.healthy)
        return self

    def healthy(self):
        try:
            with urllib.request.urlopen(f"http://{self.addr}/minio/health/live", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def url(self, prefix):
        return (
            f"s3://{self.BUCKET}/{prefix}?endpoint=http://{self.addr}&region=us-east-1"
            f"&access-key={self.KEY}&secret-access-key={self.KEY}"
        )

    def br_flags(self, prefix):
        """The same place as br's flags; the keys go by environment."""
        return [
            "--storage", f"s3://{self.BUCKET}/{prefix}", "--s3.endpoint", f"http://{self.addr}",
            "--s3.region", "us-east-1",
        ]


class Br:
    """BR as its operators call it: with every check that it makes."""

    def __init__(self, place, pd, security=Plain):
        self.program, self.place, self.pd = program("br"), place, pd
        self.security = security
        self.calls = 0

    def command(self, *args):
        self.calls += 1
        log = self.place.path(f"br-{self.calls}.log")
        return [self.program, *args, "--log-file", log, "--log-level", "info"]

    def run(self, *args, pd=True):
        """Runs a verb to its end; what it printed."""
        target = ["-u", self.pd, *self.security.flags] if pd else []
        environment = {
            **os.environ, "AWS_ACCESS_KEY_ID": Minio.KEY, "AWS_SECRET_ACCESS_KEY": Minio.KEY,
        }
        command = [str(c) for c in self.command(*args, *target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        if done.returncode != 0:
            raise Failure(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def status(self, task):
        """`br log status --json` of one task."""
        out = self.run("log", "status", "--task-name", task, "--json")
        tasks = json.loads(out[out.index("["):out.rindex("]") + 1])
        return next((t for t in tasks if t["name"] == task), None)

    def advancer(self, task):
        """Starts stock's checkpoint coordinator."""
        return self.place.spawn(
            f"advancer-{self.calls}",
            *self.command(
                "log", "advancer", "--task-name", task, "-u", self.pd, "--tick-interval", "1s",
                "--try-advance-threshold", "1s", "--backoff-time", "1s",
            ),
        )
