"""An S3 path from end to end: a task whose log lies on a real S3 server, and a restore from there."""

import json
import shutil
import tempfile
import unittest

from parts import Cluster, Sidecar, Volume, Workplace
from peers import Minio


class OnMinio(unittest.TestCase):
    peer = "minio"

    def setUp(self):
        folder = tempfile.mkdtemp(prefix="tikv-pitr-interop-")
        self.place = Workplace(folder)
        self.addCleanup(shutil.rmtree, folder)
        self.addCleanup(self.place.stop_all)
        self.minio = Minio(self.place).start()

    def test_a_juicefs_volume_is_logged_to_s3_and_restored_from_there(self):
        source = Cluster(self.place, "source").start()
        archive = self.minio.url("pitr/one")
        sidecar = Sidecar(self.place, source, archive)
        sidecar.log_start()
        sidecar.start()
        sidecar.wait_running()
        volume = Volume(self.place, source, "vol")
        volume.format()
        volume.mdtest("kept", 5)
        ts = sidecar.now()
        volume.mdtest("later", 2)
        sidecar.wait_checkpoint(ts)
        expected = source.scan_digest(ts)
        sidecar.stop()
        metadata = json.loads(self.place.tikv_pitr("log", "metadata", "-s", archive, "--json"))
        self.assertLessEqual(ts, metadata["max"]["tso"])

        target = Cluster(self.place, "target").start()
        target.restore(archive, ts)
        self.assertEqual(target.scan_digest(ts), expected)
        report = json.loads(self.place.tikv_pitr("verify", "data", "-s", archive, "--json"))
        self.assertEqual((report["problems"], report["unreferenced"]), ([], []))
        self.assertGreater(report["records"], 0)
        for log in self.place.folder.glob("*.log"):
            self.assertNotIn(Minio.KEY, log.read_text(), log.name)


if __name__ == "__main__":
    unittest.main()
