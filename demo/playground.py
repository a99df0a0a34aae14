#!/usr/bin/env python3
"""Keeps a playground and a sidecar up and prints how to connect. Ends on Ctrl-C."""

import argparse
import sys
import pathlib
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from parts import JUICEFS, TARGET, Cluster, Failure, Sidecar, Workplace  # noqa: E402


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--dir", default=None, help="folder for all data (default: a new one below TMPDIR)")
    place = Workplace(p.parse_args().dir)
    try:
        cluster = Cluster(place, "playground").start()
        archive = place.path("archive")
        sidecar = Sidecar(place, cluster, f"local://{archive}")
        sidecar.log_start()
        sidecar.start()
        print(
            f"""
PD         {cluster.pd}
store      {cluster.store}
archive    local://{archive}
status     http://{sidecar.status_addr}/status.json  (also /metrics, /healthz)
logs       {place.folder}/*.log

{TARGET}/tikv-pitr log status -u {cluster.pd}
{JUICEFS} format --storage file --bucket {place.path('objects')}/ tikv://{cluster.pd}/demo demo

One node, no raft: for demos and tests, never for production. Ctrl-C ends it.""",
            flush=True,
        )
        while cluster.process.poll() is None and sidecar.process.poll() is None:
            time.sleep(0.5)
        raise Failure(f"a process ended; see {place.folder}/*.log")
    except KeyboardInterrupt:
        return 0
    except Failure as e:
        print(f"playground: {e}", file=sys.stderr)
        return 1
    finally:
        place.stop_all()


if __name__ == "__main__":
    sys.exit(main())
