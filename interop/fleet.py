"""A cluster as an operator has it: a real PD, several stores, a sidecar beside each, with a front
before each store's status address and its peer address."""

import base64
import json
import signal
import urllib.error
import urllib.request

from certificates import Plain
from parts import TARGET, Failure, RealPd, end, free_port, wait_until


def http(url, method="GET", timeout=5, context=None):
    request = urllib.request.Request(url, method=method)
    with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
        return answer.read().decode()


class Fleet:
    """PD, stores and sidecars; `sidecars` by position, as the stores."""

    def __init__(self, place, stores=3, flush="1s", fronts=True, lines="", security=Plain):
        self.place, self.count, self.flush, self.lines = place, stores, flush, lines
        self.security = security
        self.pd_server = RealPd(place, "fleet", security)
        self.pd = self.pd_server.addr
        self.data = place.path("stores")
        self.fronts = [f"127.0.0.1:{free_port()}" for _ in range(stores)] if fronts else []
        self.peer_fronts = [f"127.0.0.1:{free_port()}" for _ in range(stores)] if fronts else []
        self.status = [f"127.0.0.1:{free_port()}" for _ in range(stores)]
        self.sidecars = [None] * stores
        self.playground = None

    def start(self):
        self.pd_server.start()
        self.start_stores()
        for at in range(self.count):
            self.start_sidecar(at)
        return self

    def start_stores(self):
        advertised = []
        for status, peer in zip(self.fronts, self.peer_fronts):
            advertised += ["--advertise-status-addr", status, "--advertise-peer-addr", peer]
        log = self.place.path("stores.log")
        seen = log.stat().st_size if log.exists() else 0
        self.playground = self.place.spawn(
            "stores", TARGET / "tikv-pitr-playground", "--data-dir", self.data,
            "--pd", f"{self.security.scheme}://{self.pd}", "--stores", self.count, "--store-addr", "127.0.0.1:0",
            "--status-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", *advertised,
            *self.security.playground_flags,
        )

        def announced():
            if self.playground.poll() is not None:
                raise Failure(f"the stores ended; see {log}")
            lines = log.read_bytes()[seen:].decode().splitlines()
            return next((json.loads(line) for line in lines if line.startswith("{")), None)

        told = wait_until("the stores serve", 60, announced)
        self.stores, self.admin = told["stores"], told["admin_addr"]

    def start_sidecar(self, at):
        config = self.place.path(f"sidecar-{at}.toml")
        store = self.stores[at]
        fronts = ""
        if self.fronts:
            fronts = (
                f'front-status-addr = "{self.fronts[at]}"\n'
                f'store-status-addr = "{store["status_addr"]}"\n'
                f'log-backup-addr = "{self.peer_fronts[at]}"\n'
            )
        config.write_text(
            f'pd-endpoints = ["{self.pd}"]\nstore-id = {store["id"]}\n'
            f'status-addr = "{self.status[at]}"\n{fronts}{self.lines}\n'
            f'[log-backup]\nmax-flush-interval = "{self.flush}"\n{self.security.section}'
        )
        self.sidecars[at] = self.place.spawn(
            f"sidecar-{at}", TARGET / "tikv-pitr", "serve", "--config", config
        )

    def kill_sidecar(self, at):
        end(self.sidecars[at], signal.SIGKILL)

    def stop(self):
        """Ends everything in an order in which each can end in peace: PD last."""
        for process in [*self.sidecars, self.playground, self.pd_server.process]:
            if process:
                end(process, signal.SIGTERM)

    def page(self, at):
        """status.json of a sidecar; None while it does not answer."""
        try:
            url = f"{self.security.scheme}://{self.status[at]}/status.json"
            return json.loads(http(url, timeout=2, context=self.security.context))
        except (OSError, urllib.error.URLError, ValueError):
            return None

    def wait_running(self, task, seconds=60):
        def running():
            pages = [self.page(at) for at in range(self.count)]
            states = [
                t["state"] for page in pages if page for t in page["tasks"] if t["name"] == task
            ]
            return states == ["running"] * self.count

        wait_until(f"every sidecar runs {task}", seconds, running)

    def verb(self, *args):
        """A verb that takes `-u` and `--json`."""
        return json.loads(self.place.tikv_pitr(*args, "-u", self.pd, "--json", *self.security.flags))

    def now(self):
        return self.verb("log", "status")["now"]

    def task(self, name):
        tasks = self.verb("log", "status")["tasks"]
        return next((task for task in tasks if task["name"] == name), None)

    def wait_checkpoint(self, task, ts, seconds=60):
        wait_until(f"checkpoint {ts}", seconds, lambda: self.task(task)["checkpoint"] >= ts)

    def scan_digest(self, ts):
        report = self.verb("verify", "scan", "--at", str(ts))
        return f"{report['digest']} over {report['keys']} keys"

    def front(self, at, path):
        """A page of a store as stock tools see it."""
        url = f"{self.security.scheme}://{self.fronts[at]}{path}"
        return http(url, context=self.security.context)

    def etcd(self, call, body):
        """A call of PD's etcd through its JSON gateway."""
        url = f"{self.security.scheme}://{self.pd}/v3/{call}"
        request = urllib.request.Request(url, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=5, context=self.security.context) as answer:
            return json.load(answer)

    def etcd_keys(self, prefix):
        """Keys of PD's etcd below a prefix, oldest first."""
        encoded = [base64.b64encode(k).decode() for k in (prefix.encode(), prefix.encode()[:-1] + b"0")]
        kvs = self.etcd("kv/range", {
            "key": encoded[0], "range_end": encoded[1], "keys_only": True,
            "sort_target": "CREATE", "sort_order": "ASCEND",
        }).get("kvs", [])
        return [base64.b64decode(kv["key"]).decode(errors="replace") for kv in kvs]

    def forget_history(self):
        """Drops every revision of PD's etcd but the last, so that old watches cannot go on."""
        key = base64.b64encode(b"none").decode()
        revision = self.etcd("kv/range", {"key": key})["header"]["revision"]
        self.etcd("kv/compaction", {"revision": revision, "physical": True})

    # What an operator's day brings.

    def regions(self):
        return json.loads(http(f"http://{self.admin}/regions"))

    def command(self, path):
        """A command to the stores; whether it was taken (a region may have gone meanwhile)."""
        try:
            http(f"http://{self.admin}{path}", "POST")
            return True
        except urllib.error.HTTPError:
            return False
