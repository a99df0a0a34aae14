#!/usr/bin/env python3
"""Every test against a real peer, one line each: `interop PEER TEST ok|FAIL|absent`.

The tests are the modules `against_*.py` beside this file; what fails prints its reason below its
line. Exit status 1 if one failed, and with CI set also if a peer is absent. `run.py PEER…` runs the
tests of these peers only.
"""

import os
import pathlib
import sys
import time
import traceback
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "demo"))


class Lines(unittest.TestResult):
    """Prints one line a test."""

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def line(self, test, word):
        name = test._testMethodName.removeprefix("test_")
        seconds = time.monotonic() - self.began
        print(f"interop {test.peer} {name} {word}", flush=True)
        print(f"  {seconds:.1f} s", file=sys.stderr, flush=True)

    def addSuccess(self, test):
        self.line(test, "ok")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line(test, "absent")
        print(f"  {reason}", file=sys.stderr)

    def addError(self, test, error):
        super().addError(test, error)
        self.failed(test, error)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.failed(test, error)

    def failed(self, test, error):
        self.line(test, "FAIL")
        print("".join(traceback.format_exception(*error)), file=sys.stderr, flush=True)


def main(wanted):
    found = unittest.defaultTestLoader.discover(str(HERE), pattern="against_*.py")
    result = Lines()
    ran = 0
    for test in flat(found):
        if isinstance(test, unittest.loader._FailedTest):
            raise SystemExit(f"interop: a module does not load: {test._exception}")
        if not wanted or test.peer in wanted:
            test.run(result)
            ran += 1
    if not ran:
        raise SystemExit(f"interop: no test of {' '.join(wanted)}")
    absent = bool(result.skipped and os.environ.get("CI"))
    return 0 if result.wasSuccessful() and not absent else 1


def flat(suite):
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from flat(part)
        else:
            yield part


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
