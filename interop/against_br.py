"""Stock br against a real PD and our sidecars: every verb of a log task's life, with all the checks that
br makes, on a local storage and on S3; and stock's checkpoint coordinator in the place of ours."""

import json
import re
import shutil
import signal
import tempfile
import threading
import unittest

from certificates import Plain, Tls
from fleet import Fleet
from parts import Cluster, Volume, Workplace, end, wait_until
from peers import Br, Minio, program

TASK = "stock"


class WithBr(unittest.TestCase):
    peer = "br"

    def setUp(self):
        program("br"), program("pd")
        self.place = Workplace(tempfile.mkdtemp(prefix="tikv-pitr-br-"))
        self.addCleanup(self.tidy)
        self.addCleanup(self.place.stop_all)

    def tidy(self):
        if self._outcome.result.wasSuccessful():
            shutil.rmtree(self.place.folder)
        else:
            print(f"  logs and data are in {self.place.folder}", flush=True)

    def start(self, lines="", flush="1s", security=Plain):
        self.fleet = Fleet(self.place, 3, flush=flush, lines=lines, security=security).start()
        self.addCleanup(self.fleet.stop)
        self.br = Br(self.place, self.fleet.pd, security)
        # br registers the keys of TiDB, [m, n) and [t, u).
        self.volume = Volume(self.place, self.fleet, "tvol", security.query)

    def checkpoint(self):
        return self.br.status(TASK)["checkpoint"]

    def wait_checkpoint(self, ts):
        wait_until(f"br shows a checkpoint of {ts}", 60, lambda: self.checkpoint() >= ts)

    def leaders(self):
        """The keys of those who want to be coordinator, in the order in which they came."""
        return self.fleet.etcd_keys("/tidb/br-stream/owner/")


class Life(WithBr):
    def test_a_task_lives_from_start_to_stop_on_a_local_storage(self):
        self.start()
        archive = self.place.path("archive")
        self.life(["--storage", f"local://{archive}"], f"local://{archive}")

    def test_a_task_lives_from_start_to_stop_on_minio(self):
        minio = Minio(self.place).start()
        self.start()
        self.life(minio.br_flags("pitr/br"), minio.url("pitr/br"))

    def test_a_task_lives_from_start_to_stop_where_everything_speaks_tls(self):
        self.start(security=Tls(self.place))
        archive = self.place.path("archive")
        self.life(["--storage", f"local://{archive}"], f"local://{archive}")

    def life(self, storage, url):
        br, fleet = self.br, self.fleet
        br.run("log", "start", "--task-name", TASK, *storage)
        fleet.wait_running(TASK)
        self.volume.format()
        self.volume.mdtest("first", 3)
        ts = fleet.now()
        self.wait_checkpoint(ts)
        status = br.status(TASK)
        self.assertEqual((status["name"], status["status"]), (TASK, "NORMAL"))
        self.pauses_and_resumes()
        self.volume.mdtest("second", 2)
        ts = fleet.now()
        self.wait_checkpoint(ts)
        before = self.log_max(url)
        told = br.run("log", "metadata", *storage, pd=False)
        told = int(re.search(r"log-max-ts=(\d+)", told)[1])
        self.assertTrue(before <= told <= self.log_max(url), told)
        expected = fleet.scan_digest(ts)
        br.run("log", "stop", "--task-name", TASK)
        self.assertIsNone(fleet.task(TASK))
        self.assertEqual([k for k in fleet.etcd_keys("/tidb/br-stream/") if "/owner/" not in k], [])
        target = Cluster(self.place, "target").start()
        target.restore(url, ts, "--log-only")
        self.assertEqual(target.scan_digest(ts), expected)

    def log_max(self, url):
        return json.loads(self.place.tikv_pitr("log", "metadata", "-s", url, "--json"))["max"]["tso"]

    def pauses_and_resumes(self):
        br, fleet = self.br, self.fleet
        br.run("log", "pause", "--task-name", TASK)
        self.assertEqual(br.status(TASK)["status"], "PAUSE")
        wait_until("every sidecar paused", 30, lambda: self.states() == ["paused"] * 3)
        stands = self.checkpoint()
        self.volume.mdtest("paused", 2)
        self.assertEqual(self.checkpoint(), stands)
        br.run("log", "resume", "--task-name", TASK)
        self.assertEqual(br.status(TASK)["status"], "NORMAL")
        fleet.wait_running(TASK)
        self.wait_checkpoint(fleet.now())

    def states(self):
        pages = [self.fleet.page(at) for at in range(3)]
        return [t["state"] for page in pages if page for t in page["tasks"]]


class Flushes(WithBr):
    def test_force_flush_makes_durable_what_would_have_waited_for_ten_minutes(self):
        self.start(flush="10m")
        self.br.run("log", "start", "--task-name", TASK, "--storage", f"local://{self.place.path('archive')}")
        self.fleet.wait_running(TASK)
        self.volume.format()
        ts = self.fleet.now()

        def covered():
            # A flush takes what is resolved by then.
            self.br.run("operator", "force-flush")
            return self.checkpoint() >= ts

        wait_until(f"forced flushes bring the checkpoint to {ts}", 30, covered)

    def test_log_status_shows_the_speed_of_our_sidecars(self):
        self.start()
        self.br.run("log", "start", "--task-name", TASK, "--storage", f"local://{self.place.path('archive')}")
        self.fleet.wait_running(TASK)
        self.volume.format()
        over = threading.Event()

        def write():
            for round_ in range(60):
                if not over.is_set():
                    self.volume.mdtest(f"load-{round_}", 3)

        load = threading.Thread(target=write)
        load.start()
        # br looks twice, a second apart; without the metric it takes the same number for both.
        wait_until("a speed is shown", 30, lambda: self.br.status(TASK)["estimate_qps"] > 0)
        over.set()
        load.join()


class Advancer(WithBr):
    def test_stocks_coordinator_moves_the_checkpoint_where_ours_are_off(self):
        self.start(lines="coordinator = false\n")
        self.br.run("log", "start", "--task-name", TASK, "--storage", f"local://{self.place.path('archive')}")
        self.fleet.wait_running(TASK)
        self.volume.format()
        ts = self.fleet.now()
        advancer = self.br.advancer(TASK)
        self.wait_checkpoint(ts)
        self.volume.mdtest("more", 2)
        self.wait_checkpoint(self.fleet.now())
        end(advancer, signal.SIGTERM)

    def test_stocks_coordinator_waits_for_ours_and_follows_it(self):
        self.start()
        self.br.run("log", "start", "--task-name", TASK, "--storage", f"local://{self.place.path('archive')}")
        self.fleet.wait_running(TASK)
        self.wait_checkpoint(self.fleet.now())
        ours = self.leaders()
        self.assertEqual(len(ours), 3)
        advancer = self.br.advancer(TASK)
        wait_until("four campaign", 30, lambda: len(self.leaders()) == 4)
        self.assertEqual(self.leaders()[0], ours[0])
        for at in range(3):
            end(self.fleet.sidecars[at], signal.SIGTERM)
        wait_until("stock's leads", 30, lambda: not set(self.leaders()) & set(ours))
        log = advancer_log(self.place)
        wait_until("it says so", 30, lambda: re.search("become.*owner|advancer become", log()))


def advancer_log(place):
    files = sorted(place.folder.glob("br-*.log"), key=lambda f: int(re.findall(r"\d+", f.name)[0]))
    return lambda: files[-1].read_text()


if __name__ == "__main__":
    unittest.main()
