"""Three stores at a real PD, a sidecar beside each, JuiceFS as the client, and an operator's worst day:
leaders move every second, regions split and merge, a sidecar is killed every ten seconds. After each
round what the archive says can be restored is restored, and equals what the stores show at that ts."""

import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import unittest

from fleet import Fleet
from parts import Cluster, Failure, Volume, Workplace, end, wait_until
from peers import program

ROUNDS = int(os.environ.get("PITR_ROUNDS") or 3)
ROUND_SECONDS = 22
FLUSH_SECONDS = 2
# What the lag must be below again, and within which time.
LAG_BACK, WITHIN = FLUSH_SECONDS + 10, 60
# How long PD is away: two minutes in the long rounds.
PD_AWAY = 120 if ROUNDS > 3 else 15


class Chaos(threading.Thread):
    """Moves leaders, splits, merges and kills until told to stop; remembers what it did."""

    def __init__(self, fleet, seed):
        super().__init__(daemon=True)
        self.fleet, self.random = fleet, random.Random(seed)
        self.over = threading.Event()
        self.done = {"leader": 0, "split": 0, "merge": 0, "kill": 0}
        self.broke = None

    def run(self):
        try:
            second = 0
            while not self.over.wait(1.0):
                second += 1
                self.move_a_leader()
                if second % 3 == 0:
                    self.split_one()
                if second % 5 == 0:
                    self.merge_two()
                if second % 10 == 0:
                    self.kill_one()
        except Exception as e:  # told by the test, which must not go on as if nothing were
            self.broke = e

    def stop(self):
        self.over.set()
        self.join()
        if self.broke:
            raise self.broke

    def command(self, kind, path):
        self.done[kind] += self.fleet.command(path)

    def move_a_leader(self):
        region = self.random.choice(self.fleet.regions())
        others = [s["id"] for s in self.fleet.stores if s["id"] != region["leader"]]
        self.command("leader", f"/regions/{region['id']}/leader/{self.random.choice(others)}")

    def split_one(self):
        """Splits between two keys of the volume, as chance has it."""
        prefix = b"vol\xfdA" + self.random.randbytes(2)
        key = encode(prefix).hex()
        inside = [
            r for r in self.fleet.regions()
            if r["start_key"] < key and (not r["end_key"] or key < r["end_key"])
        ]
        self.command("split", f"/regions/{inside[0]['id']}/split?key={key}")

    def merge_two(self):
        regions = sorted(self.fleet.regions(), key=lambda r: r["start_key"])
        if len(regions) > 3:
            at = self.random.randrange(len(regions) - 1)
            left, right = regions[at], regions[at + 1]
            self.command("merge", f"/regions/{left['id']}/merge/{right['id']}")

    def kill_one(self):
        at = self.random.randrange(self.fleet.count)
        self.fleet.kill_sidecar(at)
        self.fleet.start_sidecar(at)
        self.done["kill"] += 1


def encode(key):
    """Memcomparable: groups of eight bytes, each with a byte that says how many of them are padding."""
    out = b""
    for start in range(0, len(key) + 1, 8):
        group = key[start:start + 8]
        out += group.ljust(8, b"\0") + bytes([0xFF - (8 - len(group))])
    return out


class Load(threading.Thread):
    """A client that never rests: whole rounds of mdtest in folders of their own."""

    def __init__(self, volume):
        super().__init__(daemon=True)
        self.volume, self.over, self.rounds, self.failures = volume, threading.Event(), 0, 0

    def run(self):
        while not self.over.is_set():
            try:
                self.volume.mdtest(f"load-{self.rounds}-{self.failures}", 3)
                self.rounds += 1
            except Failure as failure:
                # A client gives up when its store moves under it for too long; the next one begins.
                self.failures += 1
                self.last_failure = failure
                time.sleep(0.2)


class WithFleet(unittest.TestCase):
    peer = "pd"

    def setUp(self):
        program("pd")
        self.place = Workplace(tempfile.mkdtemp(prefix="tikv-pitr-fleet-"))
        self.addCleanup(self.tidy)
        self.addCleanup(self.place.stop_all)
        self.fleet = Fleet(self.place, 3, flush=f"{FLUSH_SECONDS}s", fronts=False).start()
        self.addCleanup(self.fleet.stop)
        self.archive = f"local://{self.place.path('archive')}"
        self.fleet.verb("log", "start", "--task-name", "day", "-s", self.archive)
        self.fleet.wait_running("day")
        self.volume = Volume(self.place, self.fleet, "vol")
        self.volume.format()

    def tidy(self):
        if self._outcome.result.wasSuccessful():
            shutil.rmtree(self.place.folder)
        else:
            print(f"  logs and data are in {self.place.folder}", flush=True)

    def lag_is_back(self):
        def small():
            lag = self.fleet.task("day")["lag_seconds"]
            return lag is not None and lag < LAG_BACK

        wait_until(f"lag below {LAG_BACK} s", WITHIN, small)

    def restores_equal(self, name, why=""):
        """Restores to the largest ts that the archive allows, and compares with the stores."""
        metadata = json.loads(self.place.tikv_pitr("log", "metadata", "-s", self.archive, "--json"))
        ts = metadata["max"]["tso"]
        expected = self.fleet.scan_digest(ts)
        target = Cluster(self.place, f"target-{name}").start()
        target.restore(self.archive, ts)
        found = target.scan_digest(ts)
        target.destroy()
        self.assertEqual(found, expected, f"{name}, at {ts}: {why}")
        self.assertGreater(int(found.split(" ")[2]), 100, found)


class WorstDay(WithFleet):
    def test_every_round_of_an_operators_worst_day_restores_what_the_stores_show(self):
        load = Load(self.volume)
        load.start()
        for round_ in range(ROUNDS):
            chaos = Chaos(self.fleet, seed=round_)
            chaos.start()
            time.sleep(ROUND_SECONDS)
            chaos.stop()
            self.assertTrue(all(chaos.done.values()), chaos.done)
            self.lag_is_back()
            self.restores_equal(f"round-{round_}", chaos.done)
        load.over.set()
        load.join()
        self.assertGreater(load.rounds, load.failures, getattr(load, "last_failure", ""))


class PdTroubles(WithFleet):
    def states(self):
        pages = [self.fleet.page(at) for at in range(self.fleet.count)]
        return {t["state"] for page in pages if page for t in page["tasks"]}

    def test_a_pd_that_is_away_pauses_nothing_and_loses_nothing(self):
        self.volume.mdtest("before", 3)
        pd = self.fleet.pd_server
        end(pd.process, signal.SIGKILL)
        time.sleep(PD_AWAY)
        pd.start()
        self.lag_is_back()
        self.assertEqual(self.states(), {"running"})
        self.volume.mdtest("after", 3)
        self.fleet.wait_checkpoint("day", self.fleet.now())
        self.restores_equal("away")

    def test_a_pause_behind_a_compacted_watch_is_seen_and_so_is_its_end(self):
        self.volume.mdtest("before", 3)
        self.asleep(lambda: self.fleet.verb("log", "pause", "--task-name", "day"))
        wait_until("every sidecar sees the pause", 60, lambda: self.states() == {"paused"})
        self.volume.mdtest("paused", 3)
        self.asleep(lambda: self.fleet.verb("log", "resume", "--task-name", "day"))
        self.fleet.wait_running("day")
        self.fleet.wait_checkpoint("day", self.fleet.now())
        self.restores_equal("compacted")

    def asleep(self, work):
        """While the sidecars sleep, something happens and its history is dropped."""
        sidecars = self.fleet.sidecars
        for sidecar in sidecars:
            sidecar.send_signal(signal.SIGSTOP)
        work()
        self.fleet.forget_history()
        for sidecar in sidecars:
            sidecar.send_signal(signal.SIGCONT)


if __name__ == "__main__":
    unittest.main()
