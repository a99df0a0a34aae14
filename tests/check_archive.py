#!/usr/bin/env python3
"""Checks a log backup archive from nothing but its bytes.

    check_archive.py [--allow-unreferenced N] DIR

Prints one problem a line, each beginning with the object's name, then a summary; exit code 1 if
there was a problem. Objects that no meta refers to are listed; more than N of them are a failure.
It shares no code with the project, see archive_bytes.py. Needs Python 3.9+ and the package `zstandard`.
"""

import argparse
import datetime
import hashlib
import pathlib
import re
import sys

from archive_bytes import (
    CrcXor,
    Damage,
    decode,
    one_frame,
    records,
    split_key,
    table_of,
    write_record,
)

META_DIR = "v1/backupmeta/"
CHECKPOINT_DIR = "v1/global_checkpoint/"
HEX16 = "([0-9A-F]{16})"
META_NAME = re.compile(f"{HEX16}{HEX16}-d{HEX16}l{HEX16}u{HEX16}p{HEX16}\\.meta")
UUID4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
LOG_NAME = re.compile(f"v1/(\\d{{8}})/(\\d{{2}})/(\\d+)/(schema-meta/)?(\\d+)-({UUID4})\\.log")
# Objects that may lie beside the log and are none of this checker's business.
OTHER_OBJECTS = re.compile(
    r"backup\.lock|backupmeta|tikv-pitr/start\.json|v1_stream_trancate_safepoint\.txt"
    r"|truncating\.lock.*|v1/LOCK\..*|v1/APPEND_LOCK\..*|v1/migrations/.*|pitr_id_maps/.*"
)
# What a writer that was killed leaves behind; no reader takes it for an object.
LEFTOVER = re.compile(r".*\.tmp[0-9a-f]{16}")
FLAG_NO_META_KV, FLAG_EMPTY = 1, 2
ZSTD = 3
MAX_SLICE = 0xFFFFFFFF  # BR keeps positions in 32 bits


class Checker:
    """Collects problems and totals of one archive."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.problems = []
        self.totals = dict.fromkeys(["metas", "objects", "slices", "records", "bytes"], 0)
        self.objects = {}
        self.referenced = {}
        self.newest_flush = 0
        self.start_ts = 0
        self.flushes = {}
        self.long_values = set()
        self.references = {}

    def problem(self, name, text):
        self.problems.append(f"{name}: {text}")

    def expect(self, name, what, found, wanted):
        if found != wanted:
            self.problem(name, f"{what} is {found!r}, expected {wanted!r}")

    def run(self):
        """Checks everything; returns the names of unreferenced objects."""
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                self.objects[path.relative_to(self.root).as_posix()] = path
        for name in self.objects:
            if name.startswith(META_DIR) and not LEFTOVER.fullmatch(name):
                self.guard(name, self.check_meta)
        if "backupmeta" in self.objects:
            self.guard("backupmeta", self.check_backup_meta)
        for name in self.objects:
            if name.startswith(CHECKPOINT_DIR) and not LEFTOVER.fullmatch(name):
                self.check_checkpoint(name)
        for (key, start_ts), slice_name in sorted(self.references.items()):
            if (key, start_ts) not in self.long_values:
                text = f"the value of key {key.hex()} at start ts {start_ts} is in no slice"
                self.problem(slice_name, text)
        return self.check_other_objects()

    def guard(self, name, check, *args):
        try:
            check(name, *args)
        except (Damage, UnicodeDecodeError) as error:
            self.problem(name, str(error))

    def check_other_objects(self):
        unreferenced = []
        for name in self.objects:
            if name in self.referenced or name.startswith((META_DIR, CHECKPOINT_DIR)):
                continue
            if LOG_NAME.fullmatch(name):
                unreferenced.append(name)
            elif not OTHER_OBJECTS.fullmatch(name) and not LEFTOVER.fullmatch(name):
                self.problem(name, "no object of an archive has such a name")
        return unreferenced

    def check_checkpoint(self, name):
        data = self.objects[name].read_bytes()
        if not re.fullmatch(r"[1-9]\d*\.ts", name[len(CHECKPOINT_DIR) :]):
            self.problem(name, "not named after a store")
        if len(data) != 8:
            self.problem(name, f"has {len(data)} bytes instead of 8")
            return
        ts = int.from_bytes(data, "little")
        if ts > self.newest_flush:
            self.problem(name, f"checkpoint {ts} is above the newest flush ts {self.newest_flush}")
        if ts < max(self.start_ts, 1):
            self.problem(name, f"checkpoint {ts} is below the start ts {self.start_ts}")

    def check_backup_meta(self, name):
        meta = decode("BackupMeta", self.objects[name].read_bytes(), strict=False)
        self.start_ts = meta["start_version"]
        self.expect(name, "end_version", meta["end_version"], 0)
        self.expect(name, "version", meta["version"], 1)
        for field in ("cluster_id", "start_version"):
            if not meta[field]:
                self.problem(name, f"{field} is 0")

    def check_meta(self, name):
        self.totals["metas"] += 1
        tags = META_NAME.fullmatch(name[len(META_DIR) :])
        if not tags:
            raise Damage("the name has not the form of a meta")
        flush_ts, store, begin, low, high, flags = (int(tag, 16) for tag in tags.groups())
        meta = decode("Metadata", self.objects[name].read_bytes())
        self.expect(name, "store id in the name", store, meta["store_id"])
        if meta["store_id"] <= 0:
            self.problem(name, f"store_id is {meta['store_id']}")
        self.expect(name, "meta_version", meta["meta_version"], 1)
        self.expect(name, "number of V1 files", len(meta["files"]), 0)
        self.newest_flush = max(self.newest_flush, flush_ts)
        # Names are visited in order, so an earlier one of the store has a smaller or the same ts.
        if flush_ts <= self.flushes.get(store, 0):
            self.problem(name, f"flush ts {flush_ts} does not rise for store {store}")
        self.flushes[store] = flush_ts

        groups = meta["file_groups"]
        slices = [info for group in groups for info in group["data_files_info"]]
        self.expect(name, "min_ts", meta["min_ts"], min((g["min_ts"] for g in groups), default=0))
        self.expect(name, "max_ts", meta["max_ts"], max((g["max_ts"] for g in groups), default=0))
        least_begin = min((info["min_begin_ts"] for info in slices), default=0)
        has_meta_kv = any(info["is_meta"] for info in slices)
        no_meta_kv = 0 if has_meta_kv else FLAG_NO_META_KV
        self.expect(name, "tag p", flags, no_meta_kv | (0 if groups else FLAG_EMPTY))
        # A writer may mark an empty meta with ones, so that readers can skip it by its name.
        if groups or (begin, low, high) != (1, 1, 1):
            self.expect(name, "tag d", begin, least_begin)
            self.expect(name, "tag l", low, meta["min_ts"])
            self.expect(name, "tag u", high, meta["max_ts"])
        for group in groups:
            self.guard(name, self.check_group, meta, group)

    def check_group(self, meta_name, meta, group):
        name, infos = group["path"], group["data_files_info"]
        if name in self.referenced:
            self.problem(name, f"is in {meta_name} and in {self.referenced[name]}")
        self.referenced[name] = meta_name
        if not infos:
            raise Damage(f"the group of {name} is empty")
        for info in infos:
            self.expect(name, "path in a slice", info["path"], "")
        for field, of, pick in (
            ("min_ts", "min_ts", min),
            ("max_ts", "max_ts", max),
            ("min_resolved_ts", "resolved_ts", min),
        ):
            wanted = pick(info[of] for info in infos)
            self.expect(name, f"{field} of the group", group[field], wanted)
        self.check_log_name(name, meta, group)
        if name not in self.objects:
            self.problem(name, f"is missing, {meta_name} refers to it")
            return
        self.totals["objects"] += 1
        stored = self.objects[name].read_bytes()
        self.totals["bytes"] += len(stored)
        self.expect(name, "length of the group", group["length"], len(stored))
        end = 0
        for info in sorted(infos, key=lambda info: info["range_offset"]):
            start, size = info["range_offset"], info["range_length"]
            if start != end:
                self.problem(name, f"a slice begins at byte {start}, the one before ends at {end}")
            end = start + size
            slice_name = f"{name}[{start}..{end}]"
            if end > len(stored):
                self.problem(slice_name, f"is cut, the object has {len(stored)} bytes")
            else:
                self.guard(slice_name, self.check_slice, info, stored[start:end])
        self.expect(name, "end of the last slice", end, len(stored))

    def check_log_name(self, name, meta, group):
        parts = LOG_NAME.fullmatch(name)
        if not parts:
            self.problem(name, "the name has not the form of a log object")
            return
        day, hour, store, schema, min_ts, _ = parts.groups()
        seconds = (group["max_ts"] >> 18) // 1000
        time = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        self.expect(name, "directory", f"{day}/{hour}", time.strftime("%Y%m%d/%H"))
        self.expect(name, "store id in the name", store, str(meta["store_id"]))
        self.expect(name, "min_ts in the name", min_ts, str(group["min_ts"]))
        for info in group["data_files_info"]:
            self.expect(name, "is_meta of a slice", bool(info["is_meta"]), schema is not None)

    def check_slice(self, name, info, stored):
        self.totals["slices"] += 1
        self.expect(name, "compression_type", info["compression_type"], ZSTD)
        if info["file_encryption_info"]:
            raise Damage("is encrypted, which this checker does not read")
        if info["cf"] not in ("default", "write") or info["type"] not in (0, 1):
            raise Damage(f"unknown cf {info['cf']!r} or type {info['type']}")
        if info["region_id"] <= 0:
            self.problem(name, f"region_id is {info['region_id']}")
        plain = one_frame(stored, min(info["length"], MAX_SLICE))
        self.expect(name, "length", info["length"], len(plain))
        digest = hashlib.sha256(plain).hexdigest()
        self.expect(name, "sha256", info["sha256"].hex(), digest)
        seen = self.read_records(name, info, plain)
        self.totals["records"] += seen["number_of_entries"]
        for field, found in seen.items():
            stated = info[field]
            if isinstance(found, bytes):
                stated, found = stated.hex(), found.hex()
            self.expect(name, field, stated, found)
        self.check_region_bounds(name, info)

    def read_records(self, name, info, plain):
        """What the records say that `info` states too."""
        crc, timestamps, begins, keys = CrcXor(), [], [], []
        for key, value in records(plain):
            user_key, ts = split_key(key)
            crc.add(key + value)
            keys.append(key)
            timestamps.append(ts)
            if table_of(user_key) != (info["table_id"], bool(info["is_meta"])):
                self.problem(name, f"key {user_key.hex()} belongs to another table")
            if info["type"] == 0 and value:
                self.problem(name, f"a delete of {user_key.hex()} has a value")
            if info["cf"] == "default":
                if info["type"] == 1:
                    self.long_values.add((user_key, ts))
            elif value:
                kind, start_ts, short = write_record(value)
                begins.append(start_ts)
                if start_ts > ts or (start_ts == ts and kind != "R"):
                    self.problem(name, f"{user_key.hex()} commits at {ts}, begins at {start_ts}")
                if kind == "P" and not short:
                    self.references.setdefault((user_key, start_ts), name)
            elif info["type"] == 1:
                self.problem(name, f"a put of {user_key.hex()} has no write record")
        if not keys:
            raise Damage("holds no record")
        return {
            "number_of_entries": len(keys),
            "crc64xor": crc.value(),
            "min_ts": min(timestamps),
            "max_ts": max(timestamps),
            "start_key": min(keys),
            "end_key": max(keys),
            "min_begin_ts": min(begins, default=min(timestamps)),
        }

    def check_region_bounds(self, name, info):
        # Nothing more can be said: TiKV notes the region as it was at the flush, and keys that came
        # before a split may lie outside of it.
        low, high = info["region_start_key"], info["region_end_key"]
        if high and low >= high:
            self.problem(name, f"region bounds {low.hex()}..{high.hex()} are empty")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--allow-unreferenced", type=int, default=0, metavar="N")
    parser.add_argument("dir", type=pathlib.Path)
    options = parser.parse_args()
    if not options.dir.is_dir():
        parser.error(f"{options.dir} is not a directory")
    checker = Checker(options.dir)
    unreferenced = checker.run()
    for problem in checker.problems:
        print(problem)
    for name in unreferenced:
        print(f"{name}: no meta refers to it")
    failed = bool(checker.problems) or len(unreferenced) > options.allow_unreferenced
    totals = ", ".join(f"{count} {what}" for what, count in checker.totals.items())
    print(
        f"{'FAILED' if failed else 'ok'}: {len(checker.problems)} problems, "
        f"{len(unreferenced)} unreferenced; {totals}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
