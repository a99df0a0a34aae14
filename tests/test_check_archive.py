"""The checker passes archives that a real TiKV wrote and names the object of each planted fault.

Run by `make test`: python -m unittest discover -s tests
"""

import hashlib
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

import zstandard

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import archive_bytes
from archive_bytes import SCHEMA, CrcXor, decode
from check_archive import CHECKPOINT_DIR, META_DIR, Checker

HERE = pathlib.Path(__file__).parent
GOLDEN = {name: HERE / "golden" / name / "archive" for name in ("log-basic", "log-splits")}


def put_varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(message, values):
    """The reverse of archive_bytes.decode."""
    out = b""
    for number, (name, kind, many) in sorted(SCHEMA[message].items()):
        for value in values[name] if many else [values[name]]:
            if kind in ("u", "i"):
                out += put_varint(number << 3) + put_varint(value) if value else b""
                continue
            if kind in SCHEMA:
                value = encode(kind, value)
            elif kind == "s":
                value = value.encode()
            if value or many:
                out += put_varint(number << 3 | 2) + put_varint(len(value)) + value
    return out


def frame(plain):
    """One zstd frame without content size or checksum, as TiKV writes them."""
    stream = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return stream.compress(plain) + stream.flush()


class Archive:
    """A copy of a golden archive to plant faults in: one meta, its groups, an object, a slice."""

    def __init__(self, root, source="log-basic"):
        self.root = pathlib.Path(root) / source
        shutil.copytree(GOLDEN[source], self.root)
        metas = sorted((self.root / META_DIR).iterdir(), key=lambda path: path.stat().st_size)
        self.empty_meta, self.meta_path = metas[0], metas[-1]
        self.meta = decode("Metadata", self.meta_path.read_bytes())
        self.groups = self.meta["file_groups"]
        self.group = next(g for g in self.groups if "schema-meta" not in g["path"])

    def find(self, **wanted):
        """The largest slice of the group with these fields."""
        fitting = [
            info
            for info in self.group["data_files_info"]
            if all(info[field] == value for field, value in wanted.items())
        ]
        return max(fitting, key=lambda info: info["number_of_entries"])

    def path(self, group=None):
        return self.root / (group or self.group)["path"]

    def save(self):
        self.meta_path.write_bytes(encode("Metadata", self.meta))

    def stored(self, info):
        data = self.path().read_bytes()
        return data[info["range_offset"] : info["range_offset"] + info["range_length"]]

    def plain(self, info):
        return archive_bytes.one_frame(self.stored(info), info["length"])

    def replace(self, info, stored):
        """Puts other bytes in the place of a slice and moves the slices behind it."""
        data = self.path().read_bytes()
        start, size = info["range_offset"], info["range_length"]
        for other in self.group["data_files_info"]:
            if other["range_offset"] > start:
                other["range_offset"] += len(stored) - size
        info["range_length"] = len(stored)
        data = data[:start] + stored + data[start + size :]
        self.group["length"] = len(data)
        self.path().write_bytes(data)

    def rewrite(self, info, plain):
        """Other records in a slice, with digests that fit."""
        crc = CrcXor()
        for key, value in archive_bytes.records(plain):
            crc.add(key + value)
        info["sha256"] = hashlib.sha256(plain).digest()
        info["crc64xor"], info["length"] = crc.value(), len(plain)
        self.replace(info, frame(plain))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def check(root):
    """(problems, unreferenced objects)"""
    checker = Checker(root)
    unreferenced = checker.run()
    return checker.problems, unreferenced


class Passes(unittest.TestCase):
    def test_what_tikv_wrote_has_no_fault(self):
        for name, root in GOLDEN.items():
            with self.subTest(name):
                checker = Checker(root)
                self.assertEqual(checker.run(), [])
                self.assertEqual(checker.problems, [])
                self.assertGreater(checker.totals["records"], 3000)

    def test_the_encoder_of_the_mutators_loses_nothing(self):
        for root in GOLDEN.values():
            for path in (root / META_DIR).iterdir():
                data = path.read_bytes()
                again = encode("Metadata", decode("Metadata", data))
                # TiKV writes fields in the order of the .proto file, not of their numbers.
                self.assertEqual(len(again), len(data), path)
                self.assertEqual(decode("Metadata", again), decode("Metadata", data), path)

    def test_the_crc_is_the_published_one_and_mixes_like_single_crcs(self):
        crc = CrcXor()
        crc.add(b"123456789")
        self.assertEqual(crc.value(), 0x995DC9BBDF1939FA)
        chance, crc, expected = random.Random(1), CrcXor(), 0
        for _ in range(50):
            data = bytes(chance.choices((0, 0, 7, 255), k=chance.randrange(40)))
            crc.add(data)
            alone = 0xFFFFFFFFFFFFFFFF
            for byte in data:
                alone ^= byte
                for _ in range(8):
                    alone = alone >> 1 ^ (archive_bytes.CRC_POLY if alone & 1 else 0)
            expected ^= alone ^ 0xFFFFFFFFFFFFFFFF
        self.assertEqual(crc.value(), expected)

    def test_damaged_metas_never_stop_the_checker(self):
        chance = random.Random(2)
        with tempfile.TemporaryDirectory() as root:
            archive = Archive(root)
            whole = archive.meta_path.read_bytes()
            for _ in range(60):
                data = bytearray(whole)
                for _ in range(3):
                    data[chance.randrange(len(data))] = chance.randrange(256)
                archive.meta_path.write_bytes(data[: chance.randrange(len(data) // 2, len(data))])
                self.assertNotEqual(check(archive.root)[0], [])


class FindsFaults(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = place.name
        self.archive = Archive(self.place)

    def found(self, path_or_group, *words):
        """Some problem begins with the object's name and says all of the words."""
        name = path_or_group
        if isinstance(name, dict):
            name = name["path"]
        elif isinstance(name, pathlib.Path):
            name = name.relative_to(self.archive.root).as_posix()
        problems = check(self.archive.root)[0]
        fitting = [p for p in problems if p.startswith(name) and all(w in p for w in words)]
        self.assertTrue(fitting, f"no problem of {name} with {words} in:\n" + "\n".join(problems))

    def test_a_flipped_bit_in_a_log(self):
        info = self.archive.find(cf="write", type=1)
        flip(self.archive.path(), info["range_offset"] + info["range_length"] // 2)
        end = info["range_offset"] + info["range_length"]
        self.found(f"{self.archive.group['path']}[{info['range_offset']}..{end}]")

    def test_a_truncated_log(self):
        path = self.archive.path()
        path.write_bytes(path.read_bytes()[:-1])
        self.found(self.archive.group, "is cut")

    def test_bytes_behind_the_last_slice(self):
        with self.archive.path().open("ab") as log:
            log.write(b"x")
        self.found(self.archive.group, "length of the group")

    def test_a_missing_log(self):
        self.archive.path().unlink()
        self.found(self.archive.group, "is missing", self.archive.meta_path.name)

    def test_a_truncated_or_flipped_meta(self):
        path = self.archive.meta_path
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) - 3])
        self.found(path)
        path.write_bytes(b"\xff" + whole)
        self.found(path)

    def test_a_log_that_no_meta_refers_to(self):
        orphan = self.archive.path().with_name("1-11111111-2222-4333-8444-555555555555.log")
        orphan.write_bytes(b"x")
        problems, unreferenced = check(self.archive.root)
        name = orphan.relative_to(self.archive.root).as_posix()
        self.assertEqual((problems, unreferenced), ([], [name]))
        for allowed, code in ((0, 1), (1, 0)):
            run = self.run_cli("--allow-unreferenced", str(allowed))
            self.assertEqual(run.returncode, code, run.stdout)
            self.assertIn(f"{name}: no meta refers to it", run.stdout)

    def run_cli(self, *options):
        command = [sys.executable, HERE / "check_archive.py", *options, self.archive.root]
        return subprocess.run(command, capture_output=True, text=True)

    def test_the_command_prints_problems_then_a_summary(self):
        clean = self.run_cli()
        self.assertEqual((clean.returncode, clean.stdout.count("\n")), (0, 1), clean.stderr)
        self.assertTrue(clean.stdout.startswith("ok: 0 problems, 0 unreferenced; 5 metas"))
        self.archive.path().unlink()
        broken = self.run_cli()
        self.assertEqual(broken.returncode, 1)
        self.assertTrue(broken.stdout.startswith(self.archive.group["path"]), broken.stdout)
        self.assertTrue(broken.stdout.splitlines()[-1].startswith("FAILED: "))

    def test_a_slice_of_two_frames(self):
        info = self.archive.find(cf="write", type=1)
        plain = self.archive.plain(info)
        self.archive.replace(info, frame(plain[:500]) + frame(plain[500:]))
        self.archive.save()
        self.found(self.archive.group, "bytes follow the zstd frame")

    def test_a_slice_that_is_not_compressed_or_holds_too_much(self):
        info = self.archive.find(cf="write", type=1)
        plain = self.archive.plain(info)
        self.archive.replace(info, plain)
        self.archive.save()
        self.found(self.archive.group, "not a zstd frame")
        self.archive.replace(info, frame(plain + bytes(1 << 20)))
        self.archive.save()
        self.found(self.archive.group, "holds more than")

    def test_a_hole_where_a_slice_was(self):
        infos = self.archive.group["data_files_info"]
        infos.remove(sorted(infos, key=lambda info: info["range_offset"])[1])
        self.archive.save()
        self.found(self.archive.group, "a slice begins at byte")

    def test_wrong_statistics_of_a_slice(self):
        info = self.archive.find(cf="write", type=1)
        wrong = {
            "sha256": bytes(32),
            "crc64xor": info["crc64xor"] ^ 1,
            "number_of_entries": info["number_of_entries"] + 1,
            "length": info["length"] + 1,
            "min_ts": info["min_ts"] - 1,
            "max_ts": info["max_ts"] + 1,
            "start_key": info["start_key"][:-1],
            "end_key": info["end_key"] + b"\x00",
            "compression_type": 0,
            "region_id": 0,
        }
        for field, value in wrong.items():
            with self.subTest(field):
                right, info[field] = info[field], value
                self.archive.save()
                self.found(self.archive.group, field)
                info[field] = right

    def test_min_begin_ts_that_is_zero_or_not_the_smallest_start_ts(self):
        write = self.archive.find(cf="write", type=1)
        default = self.archive.find(cf="default", type=1)
        self.assertLess(write["min_begin_ts"], write["min_ts"])
        for info, value in ((write, 0), (default, 0), (write, write["min_ts"])):
            with self.subTest(cf=info["cf"], value=value):
                right, info["min_begin_ts"] = info["min_begin_ts"], value
                self.archive.save()
                self.found(self.archive.group, "min_begin_ts")
                info["min_begin_ts"] = right

    def test_records_of_another_table_or_kind_in_a_slice(self):
        info = self.archive.find(cf="write", type=1)
        for field, value, words in (
            ("table_id", 77, "belongs to another table"),
            ("type", 0, "has a value"),
            ("is_meta", 1, "is_meta"),
            ("cf", "lock", "unknown cf"),
        ):
            with self.subTest(field):
                right, info[field] = info[field], value
                self.archive.save()
                self.found(self.archive.group, words)
                info[field] = right

    def test_records_that_are_no_records_though_all_digests_fit(self):
        info = self.archive.find(cf="write", type=1)
        plain = self.archive.plain(info)
        (key, value), *rest = archive_bytes.records(plain)
        rest = plain[8 + len(key) + len(value) :]
        for key, value, words in (
            (key, b"Q" + value[1:], "is no write record"),
            (key, b"", "has no write record"),
            (key[:8] + b"\x00" + key[9:], value, "badly padded"),
            (key[:-1], value, "ts of 8 bytes"),
            (key, b"D\x01v\x05abc", "is no write record"),
            (key, b"D" + put_varint((1 << 64) - 1), "begins at"),
        ):
            with self.subTest(words):
                first = b"".join(len(part).to_bytes(4, "little") + part for part in (key, value))
                self.archive.rewrite(info, first + rest)
                self.archive.save()
                self.found(self.archive.group, words)

    def test_a_long_value_that_was_lost_with_its_slice(self):
        info = self.archive.find(cf="default", type=1)
        user_key, start_ts = archive_bytes.split_key(info["start_key"])
        plain = self.archive.plain(info)
        kept = b""
        for key, value in archive_bytes.records(plain):
            if archive_bytes.split_key(key)[0] != user_key:
                kept += len(key).to_bytes(4, "little") + key
                kept += len(value).to_bytes(4, "little") + value
        self.archive.rewrite(info, kept)
        self.archive.save()
        self.found("v1/2", user_key.hex(), "is in no slice")

    def test_wrong_bounds_of_a_group_or_meta(self):
        group = self.archive.group
        for field in ("min_ts", "max_ts", "min_resolved_ts", "length"):
            with self.subTest(field):
                group[field] += 1
                self.archive.save()
                self.found(group, field)
                group[field] -= 1
        for field in ("min_ts", "max_ts"):
            with self.subTest(f"meta {field}"):
                self.archive.meta[field] += 1
                self.archive.save()
                self.found(self.archive.meta_path, field)
                self.archive.meta[field] -= 1

    def test_a_log_under_a_wrong_name(self):
        group, old = self.archive.group, self.archive.path()
        right = group["path"]
        head, hour, store, name = right.rsplit("/", 3)
        for wrong, words in (
            (f"{head}/{(int(hour) + 1) % 24:02}/{store}/{name}", "directory"),
            (f"{head}/{hour}/7/{name}", "store id in the name"),
            (f"{head}/{hour}/{store}/1{name}", "min_ts in the name"),
            (f"{head}/{hour}/{store}/schema-meta/{name}", "is_meta"),
            (right.upper().replace("V1", "v1").replace(".LOG", ".log"), "form of a log"),
        ):
            with self.subTest(words):
                group["path"] = wrong
                self.archive.path().parent.mkdir(parents=True, exist_ok=True)
                old.rename(self.archive.path())
                old = self.archive.path()
                self.archive.save()
                self.found(wrong, words)

    def test_a_meta_whose_name_does_not_tell_its_content(self):
        path = self.archive.meta_path
        name = path.name
        for at, words in ((33, "tag d"), (50, "tag l"), (67, "tag u"), (84, "tag p"), (16, "store")):
            digit = at + 16 if at > 16 else 31
            wrong = name[:digit] + ("7" if name[digit] != "7" else "8") + name[digit + 1 :]
            with self.subTest(words):
                moved = path.rename(path.with_name(wrong))
                self.found(moved, words)
                moved.rename(path)
        for wrong in (name.lower(), name[:32] + ".meta", name.replace("-d", "-x")):
            with self.subTest(wrong):
                moved = path.rename(path.with_name(wrong))
                self.found(moved, "form of a meta")
                moved.rename(path)

    def test_a_wrong_version_or_store_in_a_meta(self):
        for field, value in (("meta_version", 0), ("store_id", 9), ("store_id", 0)):
            with self.subTest(field):
                right, self.archive.meta[field] = self.archive.meta[field], value
                self.archive.save()
                self.found(self.archive.meta_path, field.replace("_id", ""))
                self.archive.meta[field] = right

    def test_a_flush_ts_that_does_not_rise(self):
        empty = self.archive.empty_meta
        name = empty.name
        for tag in "dlu":
            name = name.replace(f"{tag}{0:016X}", f"{tag}{1:016X}")
        # Alone, an empty meta with the bounds 1 is right.
        again = empty.rename(empty.with_name(name))
        self.assertEqual(check(self.archive.root), ([], []))
        shutil.copy(again, empty)
        self.found(again, "does not rise")

    def test_an_object_in_two_metas(self):
        later = self.archive.meta_path.name
        later = f"{int(later[:16], 16) + 1:016X}{later[16:]}"
        shutil.copy(self.archive.meta_path, self.archive.meta_path.with_name(later))
        self.found(self.archive.group, "is in", later)

    def test_checkpoints_that_are_wrong(self):
        newest = max(int(path.name[:16], 16) for path in (self.archive.root / META_DIR).iterdir())
        path = self.archive.root / CHECKPOINT_DIR / "1.ts"
        path.parent.mkdir()
        path.write_bytes(newest.to_bytes(8, "little"))
        self.assertEqual(check(self.archive.root), ([], []))
        for data, words in (
            ((newest + 1).to_bytes(8, "little"), "above the newest flush ts"),
            (newest.to_bytes(8, "little")[:7], "7 bytes"),
            (bytes(8), "below the start ts"),
        ):
            with self.subTest(words):
                path.write_bytes(data)
                self.found(path, words)
        # The byte order of the values in PD. Only the start of the log can tell.
        path.write_bytes(newest.to_bytes(8, "big"))
        start = self.archive.meta["min_ts"] - 1
        values = dict(cluster_id=5, cluster_version="", start_version=start, end_version=0, version=1)
        (self.archive.root / "backupmeta").write_bytes(encode("BackupMeta", values))
        self.found(path, "below the start ts")
        path.rename(path.with_name("one.ts"))
        self.found(path.with_name("one.ts"), "not named after a store")

    def test_a_backupmeta_with_an_end(self):
        path = self.archive.root / "backupmeta"
        values = dict(cluster_id=5, cluster_version="", start_version=7, end_version=0, version=1)
        path.write_bytes(encode("BackupMeta", values))
        self.assertEqual(check(self.archive.root), ([], []))
        for field, value in (("end_version", 9), ("version", 0), ("cluster_id", 0)):
            with self.subTest(field):
                path.write_bytes(encode("BackupMeta", values | {field: value}))
                self.found(path, field)

    def test_strangers_are_named_and_leftovers_of_killed_writers_are_not(self):
        (self.archive.root / "v1" / "a.tmp0123456789abcdef").write_bytes(b"half")
        self.assertEqual(check(self.archive.root), ([], []))
        (self.archive.root / "v1" / "notes.txt").write_bytes(b"?")
        self.found("v1/notes.txt", "no object of an archive")


if __name__ == "__main__":
    unittest.main()
