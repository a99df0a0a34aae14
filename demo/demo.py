#!/usr/bin/env python3
"""The main job, end to end, on a real client's data.

A JuiceFS volume lives in a playground cluster, the sidecar tails it into an archive, the cluster is
destroyed, and `restore point` brings it back to one chosen ts in a new cluster. Equal means: the tree
that `juicefs dump` prints is equal, and so are the scan digests of both clusters at that ts.

Standard library only. Exit status 0 only if equal.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from parts import ROOT, Cluster, Failure, Sidecar, Volume, Workplace, say  # noqa: E402

VOLUME = "demo"  # outside of m, t, r, x: those first bytes mean something to TiKV or TiDB


def main():
    args = parse()
    place = Workplace(args.dir)
    try:
        equal, archive, ts = run(place, args)
    except Failure as e:
        print(f"demo: {e}", file=sys.stderr)
        print("equal: no")
        return 1
    finally:
        place.stop_all()
    print(f"archive: {archive}")
    print(f"restored to: {ts}")
    print(f"equal: {'yes' if equal else 'no'}")
    return 0 if equal else 1


def parse():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--dir", default=None, help="folder for all data (default: a new one below TMPDIR)")
    p.add_argument("--files", type=int, default=60, help="files per directory that mdtest makes")
    p.add_argument("--rounds", type=int, default=3, help="mdtest rounds before the chosen ts")
    p.add_argument("--real-pd", action="store_true", help="a pd-server beside each store (make interop-build)")
    return p.parse_args()


def run(place, args):
    source = Cluster(place, "source", args.real_pd).start()
    archive = place.path("archive")
    sidecar = Sidecar(place, source, f"local://{archive}")
    sidecar.log_start()
    sidecar.start()
    sidecar.wait_running()

    volume = Volume(place, source, VOLUME)
    volume.format()
    for round_ in range(args.rounds):
        say(f"load: mdtest round {round_ + 1}, then PUT, DELETE and MOVE over WebDAV")
        volume.mdtest(f"before-{round_}", args.files)
        volume.webdav_round(f"kept-{round_}")
        sidecar.show()
    say("clients stopped")

    ts = sidecar.now()
    say(f"chosen ts T: {ts}")
    tree_before = volume.tree("source-at-T")
    say("more load that changes and deletes what was there")
    volume.mdtest("after", args.files)
    volume.webdav_wreck("kept-0")
    sidecar.wait_checkpoint(sidecar.now())
    sidecar.show()
    digest_before = source.scan_digest(ts)
    say("source scanned at T")
    sidecar.stop()
    say("sidecar stopped after a last flush")

    say("the store is destroyed")
    source.destroy()

    target = Cluster(place, "target", args.real_pd).start()
    report = target.restore(f"local://{archive}", ts)
    say(report)
    tree_after = Volume(place, target, VOLUME).tree("target")
    digest_after = target.scan_digest(ts)
    same_tree, same_scan = tree_before == tree_after, digest_before == digest_after
    say(f"juicefs dump: FSTree {'equal' if same_tree else 'DIFFERS'}")
    say(f"scan digest at T: source {digest_before}, target {digest_after}")
    verify(place, archive)
    return same_tree and same_scan, archive, ts


def verify(place, archive):
    out = place.tikv_pitr("verify", "data", "-s", f"local://{archive}", "--json")
    report = json.loads(out)
    say(
        f"verify data: {report['slices']} slices, {report['records']} records, "
        f"{len(report['problems'])} problems, {len(report['unreferenced'])} unreferenced objects"
    )
    checked = place.run(sys.executable, ROOT / "tests" / "check_archive.py", archive)
    say(f"independent checker: {checked.strip().splitlines()[-1]}")


if __name__ == "__main__":
    sys.exit(main())
