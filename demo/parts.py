"""The parts of the demo: a folder with processes, a cluster, a sidecar, a JuiceFS volume."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ["CARGO_TARGET_DIR"]) / "debug"
JUICEFS = pathlib.Path(os.environ["PITR_VENV"]) / "bin" / "juicefs"
STARTED = time.monotonic()


class Failure(Exception):
    """A step did not do what it must; the message says which."""


def say(text):
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what, seconds, condition):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise Failure(f"{what}: not within {seconds} s")


class Workplace:
    """A folder and the processes that were started in it."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="tikv-pitr-demo-")).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise SystemExit(f"demo: {self.folder} is not empty; name another folder with --dir")
        self.processes = []

    def path(self, name):
        return self.folder / name

    def spawn(self, name, *command):
        log = open(self.path(f"{name}.log"), "ab")
        process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def run(self, *command, timeout=600):
        command = [str(c) for c in command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            tail = (done.stderr or done.stdout).strip()[-2000:]
            raise Failure(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")
        return done.stdout

    def tikv_pitr(self, *args, timeout=600):
        return self.run(TARGET / "tikv-pitr", *args, timeout=timeout)

    def stop_all(self):
        for process in reversed(self.processes):
            end(process, signal.SIGTERM)


def end(process, sig):
    if process.poll() is None:
        process.send_signal(sig)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RealPd:
    """A pd-server of one member, as `make interop-build` made it; `security` as in interop/certificates."""

    def __init__(self, place, name, security=None):
        self.place, self.name, self.security = place, f"{name}-pd", security
        self.scheme = security.scheme if security else "http"
        self.client, self.peer = free_port(), free_port()
        self.addr = f"127.0.0.1:{self.client}"
        self.data = place.path(self.name)

    def start(self):
        program = self.place.run(ROOT / "scripts" / "interop", "path", "pd").strip()
        client, peer = f"{self.scheme}://{self.addr}", f"{self.scheme}://127.0.0.1:{self.peer}"
        self.process = self.place.spawn(
            self.name, program, f"--name={self.name}", f"--data-dir={self.data}",
            f"--client-urls={client}", f"--advertise-client-urls={client}",
            f"--peer-urls={peer}", f"--advertise-peer-urls={peer}",
            f"--initial-cluster={self.name}={peer}",
            *(self.security.pd_flags if self.security else []),
        )
        wait_until(f"PD {self.name} is healthy", 60, self.healthy)
        return self

    def healthy(self):
        if self.process.poll() is not None:
            raise Failure(f"PD {self.name} ended; see {self.place.path(self.name)}.log")
        try:
            url = f"{self.scheme}://{self.addr}/pd/api/v1/health"
            context = self.security.context if self.security else None
            with urllib.request.urlopen(url, timeout=2, context=context) as r:
                return all(member["health"] for member in json.load(r))
        except OSError:
            return False

    def destroy(self):
        end(self.process, signal.SIGKILL)
        shutil.rmtree(self.data)


class Cluster:
    """A playground: PD and TiKV in one process, or TiKV alone at a real PD."""

    def __init__(self, place, name, real_pd=False):
        self.place, self.name = place, name
        self.real_pd = RealPd(place, name) if real_pd else None
        self.pd = self.real_pd.addr if real_pd else f"127.0.0.1:{free_port()}"
        self.store = f"127.0.0.1:{free_port()}"
        self.data = place.path(name)

    def start(self):
        if self.real_pd:
            self.real_pd.start()
        self.process = self.place.spawn(
            self.name, TARGET / "tikv-pitr-playground", "--data-dir", self.data,
            *(["--pd", f"http://{self.pd}"] if self.real_pd else ["--pd-addr", self.pd]),
            "--store-addr", self.store,
        )
        wait_until(f"playground {self.name} serves", 30, self.answers)
        kind = "real PD" if self.real_pd else "PD"
        say(f"playground {self.name}: {kind} {self.pd}, store {self.store}")
        return self

    def answers(self):
        if self.process.poll() is not None:
            raise Failure(f"playground {self.name} ended; see {self.place.path(self.name)}.log")
        try:
            socket.create_connection(self.pd.split(":"), 0.2).close()
            socket.create_connection(self.store.split(":"), 0.2).close()
            return True
        except OSError:
            return False

    def destroy(self):
        end(self.process, signal.SIGKILL)
        shutil.rmtree(self.data)
        if self.real_pd:
            self.real_pd.destroy()

    def scan_digest(self, ts):
        out = self.place.tikv_pitr("verify", "scan", "-u", self.pd, "--at", ts, "--json")
        report = json.loads(out)
        return f"{report['digest']} over {report['keys']} keys"

    def restore(self, archive, ts, *flags):
        began = time.monotonic()
        out = self.place.tikv_pitr(
            "restore", "point", "-u", self.pd, "-s", archive,
            "--restored-ts", ts, "--json", *flags,
        )
        report, seconds = json.loads(out), time.monotonic() - began
        mb = report["bytes_written"] / 1e6
        return (
            f"restored {report['records_written']} records, {mb:.2f} MB in {seconds:.1f} s "
            f"({mb / seconds:.1f} MB/s, one process start and proof included)"
        )


class Sidecar:
    """`tikv-pitr serve` beside the store of a cluster."""

    def __init__(self, place, cluster, archive):
        self.place, self.cluster, self.archive = place, cluster, archive
        self.status_addr = f"127.0.0.1:{free_port()}"
        self.config = place.path("sidecar.toml")
        self.config.write_text(
            f'pd-endpoints = ["{cluster.pd}"]\n'
            f'store-address = "{cluster.store}"\n'
            f'status-addr = "{self.status_addr}"\n\n'
            '[log-backup]\nmax-flush-interval = "2s"\n'
        )

    def log_start(self):
        self.place.tikv_pitr(
            "log", "start", "-u", self.cluster.pd, "--task-name", "demo",
            "-s", self.archive,
        )
        say(f"task demo registered; archive {self.archive.partition('?')[0]}")

    def start(self):
        self.process = self.place.spawn(
            "sidecar", TARGET / "tikv-pitr", "serve", "--config", self.config
        )

    def status(self):
        with urllib.request.urlopen(f"http://{self.status_addr}/status.json", timeout=5) as r:
            return json.load(r)

    def wait_running(self):
        def running():
            try:
                tasks = self.status()["tasks"]
            except OSError:
                return False
            return tasks and tasks[0]["state"] == "running" and tasks[0]["lag_seconds"] is not None

        wait_until("the sidecar runs the task", 30, running)

    def show(self):
        task = self.status()["tasks"][0]
        say(
            f"sidecar: {task['events']} events, {task['bytes'] / 1e6:.2f} MB, "
            f"checkpoint lag {task['lag_seconds']:.1f} s, {task['state']}"
        )

    def log_status(self):
        out = self.place.tikv_pitr("log", "status", "-u", self.cluster.pd, "--json")
        return json.loads(out)

    def now(self):
        return self.log_status()["now"]

    def checkpoint(self):
        return self.log_status()["tasks"][0]["checkpoint"]

    def wait_checkpoint(self, ts):
        wait_until(f"checkpoint {ts}", 60, lambda: self.checkpoint() >= ts)

    def stop(self):
        end(self.process, signal.SIGTERM)
        if self.process.returncode != 0:
            raise Failure(f"sidecar ended with {self.process.returncode}; see sidecar.log")


class Volume:
    """A JuiceFS volume whose metadata is in a cluster."""

    def __init__(self, place, cluster, name, query=""):
        self.place, self.name = place, name
        self.url = f"tikv://{cluster.pd}/{name}{query}"

    def juicefs(self, *args):
        return self.place.run(JUICEFS, *args, timeout=300)

    def format(self):
        self.juicefs(
            "format", "--storage", "file", "--bucket", f"{self.place.path('objects')}/",
            self.url, self.name,
        )
        say(f"JuiceFS volume {self.name} formatted")

    def mdtest(self, folder, files):
        self.juicefs(
            "mdtest", "--threads", 4, "--dirs", 3, "--depth", 2, "--files", files,
            "--no-usage-report", self.url, folder,
        )

    def webdav(self, work):
        port, metrics = free_port(), free_port()
        process = self.place.spawn(
            "webdav", JUICEFS, "webdav", "--no-usage-report", "--metrics", f"127.0.0.1:{metrics}",
            "--log", self.place.path("webdav-access.log"), "--cache-dir", self.place.path("cache"),
            self.url, f"127.0.0.1:{port}",
        )
        dav = Dav(f"http://127.0.0.1:{port}/")
        try:
            wait_until("webdav answers", 30, lambda: dav.call("OPTIONS", "") is not None)
            work(dav)
        finally:
            end(process, signal.SIGTERM)

    def webdav_round(self, folder):
        def work(dav):
            dav.must("MKCOL", folder)
            for i in range(20):
                dav.must("PUT", f"{folder}/file-{i}", f"{folder} {i}\n".encode() * (1 + i * 50))
            for i in range(0, 20, 5):
                dav.must("DELETE", f"{folder}/file-{i}")
            for i in range(1, 20, 5):
                dav.must("MOVE", f"{folder}/file-{i}", to=f"{folder}/moved-{i}")

        self.webdav(work)

    def webdav_wreck(self, folder):
        def work(dav):
            dav.must("PUT", f"{folder}/file-2", b"overwritten after T")
            dav.must("MOVE", f"{folder}/file-3", to=f"{folder}/renamed-after-T")
            dav.must("DELETE", "before-0")
            dav.must("DELETE", f"{folder}/moved-1")

        self.webdav(work)

    def tree(self, label):
        dump = self.place.path(f"{label}.json")
        self.juicefs("dump", self.url, dump)
        return json.loads(dump.read_text())["FSTree"]


class Dav:
    """The few WebDAV methods the load uses."""

    def __init__(self, base):
        self.base = base

    def call(self, method, path, body=None, to=None):
        request = urllib.request.Request(self.base + path, data=body, method=method)
        if to is not None:
            request.add_header("Destination", self.base + to)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except OSError as e:
            self.last_error = e
            return None

    def must(self, method, path, body=None, to=None):
        if self.call(method, path, body, to) is None:
            raise Failure(f"WebDAV {method} {path}: {self.last_error}")
