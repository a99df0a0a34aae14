"""What a reader may rely on in every source file: sizes, no unwrap outside of tests, tests that keep up with the code."""

import pathlib
import re
import statistics
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST_FILE = 800
MEDIAN_FILE = 150
# A panic in disguise: on data from outside it would end the daemon.
PANICS = re.compile(r"\.unwrap\(\)|\bpanic!\(|\btodo!\(|\bunimplemented!\(")
# The simulation, the fuzz targets and the real peers are tests by what they do.
TEST_FOLDERS = {"tests", "sim", "fuzz", "interop"}
# Neither product nor test of it: the stand-in for PD and TiKV with tests of its own, benches, the example engine.
BESIDE = {"playground", "bench", "examples"}
# Lines of tests per line of code; this bound only ever rises.
LEAST_TESTS = 1.0
VAGUE = {"utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"}


class Source:
    """A Rust file, parted into code and the tests at its end."""

    def __init__(self, path):
        self.path = path.relative_to(ROOT)
        self.lines = path.read_text().splitlines()
        in_test_folder = bool(TEST_FOLDERS & set(self.path.parts))
        self.whole_is_test = in_test_folder or bool(re.search(r"^(tests|fixture)$|_tests$", self.path.stem))
        self.code = [] if self.whole_is_test else self.lines[: self.first_test_line()]

    def first_test_line(self):
        for number, line in enumerate(self.lines):
            following = self.lines[number + 1] if number + 1 < len(self.lines) else ""
            if line == "#[cfg(test)]" and re.match(r"mod \w+ \{", following):
                return number
        return len(self.lines)


def sources():
    tracked = (path for path in sorted(ROOT.rglob("*.rs")) if "target" not in path.relative_to(ROOT).parts)
    return [Source(path) for path in tracked]


def statements(lines):
    """Lines that are neither blank nor a comment."""
    return sum(1 for line in lines if line.strip() and not line.lstrip().startswith(("//", "#")))


class Tidy(unittest.TestCase):
    def test_no_file_is_longer_than_a_reader_bears(self):
        long = {str(s.path): len(s.lines) for s in sources() if len(s.lines) > LONGEST_FILE}
        self.assertEqual(long, {})

    def test_every_test_that_the_fault_matrix_names_exists(self):
        matrix = (ROOT / "docs" / "fault-matrix.md").read_text()
        named = {name for name in re.findall(r"`([a-z0-9_]+)`", matrix) if name.count("_") > 2}
        written = {
            name
            for pattern in ("*.rs", "*.py")
            for path in ROOT.rglob(pattern)
            if "target" not in path.relative_to(ROOT).parts
            for name in re.findall(r"\b(?:fn|def) (\w+)", path.read_text())
        }
        self.assertGreater(len(named), 40)
        self.assertEqual(sorted(named - written), [])

    def test_the_median_file_fits_on_a_few_screens(self):
        median = statistics.median(len(s.code) for s in sources() if s.code)
        self.assertLessEqual(median, MEDIAN_FILE)

    def test_no_module_is_named_after_nothing(self):
        self.assertEqual([str(s.path) for s in sources() if s.path.name in VAGUE], [])

    def test_every_module_says_what_it_is(self):
        mute = [str(s.path) for s in sources() if s.code and not s.lines[0].startswith(("//!", "#!["))]
        self.assertEqual(mute, [])

    def test_nothing_outside_of_tests_unwraps_or_panics(self):
        found = [
            f"{s.path}:{number}"
            for s in sources()
            for number, line in enumerate(s.code, 1)
            if PANICS.search(line) and not line.lstrip().startswith("//")
        ]
        self.assertEqual(found, [])

    def test_tests_keep_up_with_the_code(self):
        product = [s for s in sources() if s.path.parts[0] not in BESIDE]
        code = sum(statements(s.code) for s in product)
        rust = sum(statements(s.lines) for s in product) - code
        python = sum(statements(path.read_text().splitlines()) for path in (ROOT / "tests").glob("*.py"))
        self.assertGreaterEqual((rust + python) / code, LEAST_TESTS, f"{code} lines of code, {rust} + {python} lines of tests")


if __name__ == "__main__":
    unittest.main()
