"""The demo, small: it must end with the three lines that the README promises, and exit 0."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "demo.py"


def demo(*args, **env):
    return subprocess.run(
        [sys.executable, DEMO, *args],
        capture_output=True, text=True, timeout=300, env={**os.environ, **env},
    )


class Demo(unittest.TestCase):
    def test_a_small_demo_restores_an_equal_store_and_says_so(self):
        with tempfile.TemporaryDirectory() as folder:
            done = demo("--dir", folder, "--files", "5", "--rounds", "1")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            archive, restored, equal = done.stdout.splitlines()[-3:]
            self.assertEqual(archive, f"archive: {pathlib.Path(folder).resolve() / 'archive'}")
            self.assertRegex(restored, r"^restored to: \d{18}$")
            self.assertEqual(equal, "equal: yes")

    def test_a_small_demo_on_a_real_pd_restores_an_equal_store(self):
        built = subprocess.run([ROOT / "scripts" / "interop", "path", "pd"], capture_output=True, text=True)
        if built.returncode != 0 and not os.environ.get("CI"):
            self.skipTest(built.stderr.strip())
        with tempfile.TemporaryDirectory() as folder:
            done = demo("--dir", folder, "--files", "3", "--rounds", "1", "--real-pd")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("real PD", done.stdout)
            self.assertEqual(done.stdout.splitlines()[-1], "equal: yes")

    def test_a_demo_whose_client_is_missing_fails(self):
        with tempfile.TemporaryDirectory() as folder:
            done = demo("--dir", folder, PITR_VENV="/nonexistent")
            self.assertNotEqual(done.returncode, 0)
            self.assertNotIn("equal: yes", done.stdout)


if __name__ == "__main__":
    unittest.main()
