"""A foreign client against the playground's import service: golden archives through `Apply`, golden
SST files through `Upload`, `Download` and the ingests, the calls that a real TiKV was recorded
with, damaged input, and a process that is killed in the middle.

Run by `make test`: python -m unittest discover -s tests
"""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import grpc
from google.protobuf import text_format

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import import_client as client
from import_client import GOLDEN, WIRE, encode_key, local, new, pairs_of, sst_meta, times

SNAPSHOT = GOLDEN / "txn-snapshot" / "archive"
SNAPSHOT_TS = times("log-splits")["end_ts"]
RECORDED_SPLITS = [b"r\0\0\0", b"r\0\0\x01", b"x\0\0\0", b"x\0\0\x01"]
KEYSPACE = 1


class Case(unittest.TestCase):
    """A playground of a test's own."""

    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.server = client.Playground(self.folder)
        self.addCleanup(lambda: self.server.stop())
        self.uuids = 0

    def uuid(self):
        self.uuids += 1
        return self.uuids.to_bytes(16, "big")

    def region(self):
        (region,) = self.server.regions()
        return region

    def request(self, name, sst, storage=SNAPSHOT, **fields):
        return new("import_sstpb.DownloadRequest", name=name, sst=sst,
                   storage_backend=local(storage), **fields)

    def download(self, name, cf, storage=SNAPSHOT, start=b"", end=b"", fields=None, timeout=60, **meta):
        """The meta of the resulting file (for its ingest) and the answer."""
        sst = sst_meta(self.region(), cf, self.uuid(), start, end, **meta)
        request = self.request(name, sst, storage, **(fields or {}))
        answer = self.server.imp("Download", request, timeout)
        if answer.HasField("range"):
            sst.range.CopyFrom(answer.range)
        return sst, answer

    def ingest(self, *ssts):
        request = new("import_sstpb.MultiIngestRequest", context=client.context(self.region()),
                      ssts=ssts)
        return self.server.imp("MultiIngest", request)

    def files(self, pattern="*.sst"):
        return sorted(path.name for path in self.server.imports.glob(pattern))

    def assert_nothing_came_of_it(self):
        self.assertEqual(self.files("*.sst*"), [])
        self.assertEqual(self.files(".temp/*"), [])
        self.assertEqual(self.server.scan(SNAPSHOT_TS), {})


def snapshot_pairs():
    """(default file, write file) of every region of the snapshot."""
    for path in sorted((SNAPSHOT / "1").glob("*_write.sst")):
        yield f"1/{path.name.replace('_write', '_default')}", f"1/{path.name}"


class Apply(Case):
    def test_one_log_on_top_of_another_shows_what_the_real_store_showed(self):
        basic, splits = times("log-basic"), times("log-splits")
        self.server.split(*RECORDED_SPLITS)
        self.assertEqual(self.server.apply("log-basic", basic["start_ts"], basic["end_ts"]), [])
        self.assertEqual(self.server.scan(basic["mid_ts"]), pairs_of("log-basic/scan-mid.tsv.gz"))
        self.assertEqual(self.server.scan(basic["end_ts"]), pairs_of("log-basic/scan-end.tsv.gz"))
        known = {region.start_key.hex() for region in self.server.regions()}
        starts = [bytes.fromhex(region["start"]) for region in splits["regions"]
                  if region["start"] not in known]
        self.server.split(*map(client.decode_key, starts))
        self.assertEqual(len(self.server.regions()), len(splits["regions"]))
        errors = self.server.apply("log-splits", splits["start_ts"], splits["end_ts"],
                                   storage_cache_id="task")
        self.assertEqual(errors, [])
        self.assertEqual(self.server.scan(splits["mid_ts"]), pairs_of("log-splits/scan-mid.tsv.gz"))
        self.assertEqual(self.server.scan(splits["end_ts"]), pairs_of("log-splits/scan-end.tsv.gz"))
        self.assertEqual(self.server.scan(basic["mid_ts"]), pairs_of("log-basic/scan-mid.tsv.gz"),
                         "history stays")

    def test_two_archives_with_equal_object_names_are_not_mixed_up(self):
        """The server's cache knows the archive, not only the object."""
        basic = times("log-basic")
        other = self.folder / "other"
        shutil.copytree(GOLDEN / "log-basic" / "archive", other)
        for path in other.glob("v1/2*/**/*.log"):
            path.write_bytes(path.read_bytes()[::-1])
        self.assertEqual(self.server.apply("log-basic", basic["start_ts"], basic["mid_ts"],
                                           storage_cache_id="same"), [])
        region, (path, info) = self.region(), client.slices("log-basic")[0]
        meta = client.kv_meta(path, info, region, 0, basic["end_ts"])
        request = client.apply_request(other, region, [meta], storage_cache_id="same")
        self.assertIn("Cannot read", self.server.imp("Apply", request).error.message)

    def test_a_damaged_slice_is_refused_before_any_slice_of_its_request_is_written(self):
        archive = self.folder / "archive"
        shutil.copytree(GOLDEN / "log-basic" / "archive", archive)
        basic, region = times("log-basic"), self.region()
        chosen = [(path, info) for path, info in client.slices("log-basic")
                  if info.type == 1 and info.cf == "write"]
        metas = [client.kv_meta(path, info, region, 0, basic["end_ts"]) for path, info in chosen]
        path, info = chosen[-1]
        target = archive / path
        good = target.read_bytes()
        self.assertNotEqual(path, chosen[0][0], "the first slice stays good")
        middle = info.range_offset + info.range_length // 2
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1:]
        for damage, content in [("flipped byte", flipped), ("cut", good[:middle]), ("gone", None)]:
            with self.subTest(damage):
                target.unlink(missing_ok=True)
                if content is not None:
                    target.write_bytes(content)
                answer = self.server.imp("Apply", client.apply_request(archive, region, metas))
                self.assertIn("Cannot read", answer.error.message)
                self.assertIn(pathlib.Path(path).name, answer.error.message)
                self.assertFalse(answer.error.HasField("store_error"))
                self.assert_nothing_came_of_it()
        target.write_bytes(good)
        answer = self.server.imp("Apply", client.apply_request(archive, region, metas))
        self.assertFalse(answer.HasField("error"), answer)

    def test_slices_of_the_oldest_metadata_are_whole_objects_and_a_length_is_not_needed(self):
        """V1 metadata: one object a slice, no range; and `length` 0 means "not checked"."""
        region, ts = self.region(), 100
        record = b""
        for key, value in [(client.at_ts(b"k", ts), b"P\x50v\x01v")]:
            record += len(key).to_bytes(4, "little") + key
            record += len(value).to_bytes(4, "little") + value
        (self.folder / "one.log").write_bytes(record)
        meta = new("import_sstpb.KVMeta", name="one.log", cf="write", restore_ts=ts)
        answer = self.server.imp("Apply", client.apply_request(self.folder, region, [meta]))
        self.assertFalse(answer.HasField("error"), answer)
        self.assertEqual(self.server.scan(ts), {b"k": b"v"})
        (self.folder / "one.log").write_bytes(record[:-1])
        meta.length = len(record) - 1
        answer = self.server.imp("Apply", client.apply_request(self.folder, region, [meta]))
        self.assertIn("Cannot read", answer.error.message)

    def test_an_encrypted_slice_is_applied_with_the_key_of_the_request_only(self):
        path, info = next((path, info) for path, info in client.slices("log-basic")
                          if info.type == 1 and info.cf == "write" and info.length > 10_000)
        plain = (GOLDEN / "log-basic" / "archive" / path).read_bytes()
        plain = plain[info.range_offset:info.range_offset + info.range_length]
        key, iv = bytes(range(32)), bytes(range(16, 32))
        stored = ctr(key, iv, plain)
        (self.folder / "encrypted.log").write_bytes(b"before" + stored + b"behind")
        basic, region = times("log-basic"), self.region()
        meta = client.kv_meta("encrypted.log", info, region, 0, basic["end_ts"])
        meta.range_offset = 6
        encryption = meta.file_encryption_info
        encryption.plain_text_data_key.SetInParent()
        encryption.encryption_method, encryption.file_iv = 4, iv
        encryption.checksum = hashlib.sha256(stored).digest()
        send = lambda **fields: self.server.imp(
            "Apply", client.apply_request(self.folder, region, [meta], **fields))
        cipher = new("backup.CipherInfo", cipher_type=4, cipher_key=key)
        self.assertIn("no key", send().error.message)
        self.assertIn("Cannot read", send(
            cipher_info=new("backup.CipherInfo", cipher_type=4, cipher_key=bytes(32))).error.message)
        self.assertFalse(send(cipher_info=cipher).HasField("error"))
        self.assertIn("no key", send().error.message, "the cache does not help without the key")
        encryption.checksum = bytes(32)
        self.assertIn("encrypted file checksums", send(cipher_info=cipher).error.message)
        encryption.master_key_based.SetInParent()
        self.assertIn("master key", send(cipher_info=cipher).error.message)
        encryption.ClearField("master_key_based")
        self.assertIn("without a mode", send(cipher_info=cipher).error.message)


class Files(Case):
    def test_a_snapshot_comes_back_by_upload_and_by_download(self):
        for turn, (default, write) in enumerate(snapshot_pairs()):
            ssts = []
            for name, cf in [(default, "default"), (write, "write")]:
                data = (SNAPSHOT / name).read_bytes()
                sst, answer = self.download(name, cf, length=len(data))
                self.assertFalse(answer.HasField("error"), answer)
                # The file was taken over as it is.
                self.assertEqual((answer.crc32, answer.length), (client.crc32(data), len(data)))
                if turn % 2:
                    sst.uuid = self.uuid()
                    sst.crc32 = client.crc32(data)
                    self.server.upload(sst, data)
                ssts.append(sst)
            if turn % 3:
                self.assertFalse(self.ingest(*ssts).HasField("error"))
                continue
            for sst in ssts:
                request = new("import_sstpb.IngestRequest", sst=sst,
                              context=client.context(self.region()))
                self.assertFalse(self.server.imp("Ingest", request).HasField("error"))
        self.assertEqual(self.server.scan(SNAPSHOT_TS), pairs_of("txn-snapshot/scan.tsv.gz"))

    def test_keys_are_renamed_by_a_keyspace_rule_and_cut_to_the_range(self):
        ssts = []
        for default, write in snapshot_pairs():
            for name, cf in [(default, "default"), (write, "write")]:
                fields = {"request_type": KEYSPACE}
                fields["rewrite_rule"] = new("import_sstpb.RewriteRule", old_key_prefix=b"val/",
                                             new_key_prefix=b"volume-two/")
                sst, answer = self.download(name, cf, start=b"volume-two/",
                                            end=b"volume-two/" + b"\xff" * 10, fields=fields)
                self.assertFalse(answer.HasField("error"), answer)
                if not answer.is_empty:
                    ssts.append(sst)
        self.assertFalse(self.ingest(*ssts).HasField("error"))
        wanted = {b"volume-two/" + key[4:]: value
                  for key, value in pairs_of("txn-snapshot/scan.tsv.gz").items()
                  if key.startswith(b"val/")}
        self.assertGreater(len(wanted), 5)
        self.assertEqual(self.server.scan(SNAPSHOT_TS), wanted)

    def test_several_files_become_one_in_a_batch(self):
        region = self.region()
        ssts = []
        for at, cf in enumerate(["default", "write"]):
            names = [pair[at] for pair in snapshot_pairs()]
            sst = sst_meta(region, cf, self.uuid())
            request = self.request("", sst)
            for name in names:
                request.ssts[name].CopyFrom(sst_meta(region, cf, self.uuid()))
            single = self.server.imp("Download", request)
            self.assertIn("BatchDownload", single.error.message)
            answer = self.server.imp("BatchDownload", request)
            self.assertFalse(answer.HasField("error"), answer)
            sst.range.CopyFrom(answer.range)
            ssts.append(sst)
        self.assertEqual(len(self.files()), 2)
        self.assertFalse(self.ingest(*ssts).HasField("error"))
        self.assertEqual(self.server.scan(SNAPSHOT_TS), pairs_of("txn-snapshot/scan.tsv.gz"))
        probe = self.server.imp("BatchDownload")
        self.assertTrue(probe.HasField("error"), "an empty request is answered, in band")

    def test_an_encrypted_file_is_decrypted_with_the_key_of_the_request(self):
        """The same length, so a wrong key shows in the table alone."""
        default, _ = next(snapshot_pairs())
        plain = (SNAPSHOT / default).read_bytes()
        key, iv = bytes(range(32)), bytes(range(16))
        cipher = new("backup.CipherInfo", cipher_type=4, cipher_key=key)
        stored = self.folder / "encrypted.sst"
        stored.write_bytes(ctr(key, iv, plain))
        fields = {"cipher_info": cipher}
        _, answer = self.download("encrypted.sst", "default", self.folder, fields=fields,
                                  cipher_iv=iv)
        self.assertFalse(answer.HasField("error"), answer)
        self.assertEqual(answer.crc32, client.crc32(plain))
        for wrong in (bytes(32), b"short"):
            cipher.cipher_key = wrong
            _, answer = self.download("encrypted.sst", "default", self.folder,
                                      fields={"cipher_info": cipher}, cipher_iv=iv)
            self.assertTrue(answer.HasField("error"))

    def test_the_same_download_again_is_the_same_file_and_another_one_is_refused(self):
        default, write = next(snapshot_pairs())
        sst = sst_meta(self.region(), "default", self.uuid())
        first = self.server.imp("Download", self.request(default, sst))
        again = self.server.imp("Download", self.request(default, sst))
        self.assertEqual(first, again)
        self.assertEqual(len(self.files()), 1)
        other = self.server.imp("Download", self.request(write, sst))
        self.assertIn("MisMatchRequest", other.error.message)

    def test_a_byte_that_changes_in_the_import_directory_is_found_at_the_ingest(self):
        default, _ = next(snapshot_pairs())
        sst, _ = self.download(default, "default")
        (name,) = self.files()
        path = self.server.imports / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        self.assertIn("FileCorrupted", self.ingest(sst).error.message)
        self.assert_nothing_came_of_it()

    def test_a_damaged_object_is_refused_and_leaves_nothing(self):
        default, write = next(snapshot_pairs())
        storage = self.folder / "storage"
        (storage / "1").mkdir(parents=True)
        good = (SNAPSHOT / write).read_bytes()
        target = storage / write
        # The filter, near the end, is not read: RocksDB does without one that is damaged.
        flips = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1:]
                 for at in range(7, len(good) * 3 // 4, 4111)]
        cases = [("flipped byte", data, {}) for data in flips]
        cases += [
            ("cut, length known", good[:-1], {"length": len(good)}),
            ("cut", good[:len(good) // 2], {}),
            ("empty", b"", {}),
            ("no table", b"x" * 5000, {}),
            ("wrong length", good, {"length": len(good) + 1}),
            ("wrong count", good, {"total_kvs": 1}),
            ("missing", None, {}),
        ]
        for damage, content, meta in cases:
            with self.subTest(damage):
                target.unlink(missing_ok=True)
                if content is not None:
                    target.write_bytes(content)
                sst, answer = self.download(write, "write", storage, **meta)
                self.assertIn("Cannot read", answer.error.message)
                self.assertIn(target.name, answer.error.message)
                self.assertFalse(answer.HasField("range"))
                ingested = self.ingest(sst)
                self.assertTrue(ingested.error.HasField("stale_command"), ingested)
                self.assert_nothing_came_of_it()
        target.write_bytes(good)
        _, answer = self.download(write, "write", storage)
        self.assertFalse(answer.HasField("error"), "a good object of the same name is read anew")

    def test_keys_outside_of_the_rule_or_the_region_are_refused(self):
        _, write = next(snapshot_pairs())
        rule = new("import_sstpb.RewriteRule", old_key_prefix=b"no key begins so",
                   new_key_prefix=b"new")
        _, answer = self.download(write, "write", start=b"x", fields={"rewrite_rule": rule})
        self.assertIn("SST start range has wrong prefix", answer.error.message)
        _, answer = self.download(write, "write", fields={"rewrite_rule": rule})
        self.assertIn("key in SST has wrong prefix", answer.error.message)
        sst, answer = self.download(write, "write")
        self.assertFalse(answer.HasField("error"))
        whole = WIRE.type("import_sstpb.SSTMeta")()
        whole.CopyFrom(sst)
        sst.range.end = sst.range.start
        self.assertIn("the file holds keys", self.ingest(sst).error.message)
        self.assertFalse(self.ingest(whole).HasField("error"))


class Killed(Case):
    def limit(self, bytes_per_second):
        self.server.imp("SetDownloadSpeedLimit", new(
            "import_sstpb.SetDownloadSpeedLimitRequest", speed_limit=bytes_per_second))

    def in_the_middle(self, method, request, ready):
        """Kills the server while it serves the call, and starts it again."""
        path = f"/import_sstpb.ImportSST/{method}"
        send = self.server.store.unary_unary(path, lambda m: m.SerializeToString(), bytes)
        answer = send.future(request, timeout=60)
        end = time.monotonic() + 30
        while not ready():
            self.assertLess(time.monotonic(), end)
            self.assertFalse(answer.done(), "the call ended before the server was killed")
            time.sleep(0.02)
        self.server.kill()
        self.assertIsInstance(answer.exception(), grpc.RpcError)
        self.server.start()

    def test_a_download_goes_on_where_the_killed_process_was(self):
        name, size = max(((f"1/{p.name}", p.stat().st_size) for p in (SNAPSHOT / "1").iterdir()),
                         key=lambda entry: entry[1])
        cf = name.rsplit("_", 1)[1].removesuffix(".sst")
        self.limit(20_000)
        sst = sst_meta(self.region(), cf, self.uuid(), length=size)
        parts = lambda: sum(p.stat().st_size for p in self.server.imports.glob(".partial/*"))
        self.in_the_middle("Download", self.request(name, sst), lambda: parts() > size // 3)
        self.assertEqual(self.files("*.sst*"), [])
        self.assertEqual(self.files(".temp/*"), [])
        had = parts()
        self.assertTrue(size // 3 < had < size, had)
        self.limit(20_000)
        began = time.monotonic()
        answer = self.server.imp("Download", self.request(name, sst))
        took = time.monotonic() - began
        self.assertFalse(answer.HasField("error"), answer)
        data = (SNAPSHOT / name).read_bytes()
        self.assertEqual((answer.crc32, answer.length), (client.crc32(data), size))
        self.assertLess(took, 0.85 * size / 20_000, "only the rest was read")
        self.assertEqual(self.files(".partial/*"), [])
        sst.range.CopyFrom(answer.range)
        self.assertFalse(self.ingest(sst).HasField("error"))

    def test_a_part_that_was_torn_is_found_and_fetched_again(self):
        default, _ = next(snapshot_pairs())
        size = (SNAPSHOT / default).stat().st_size
        self.limit(20_000)
        sst = sst_meta(self.region(), "default", self.uuid())
        parts = lambda: sum(p.stat().st_size for p in self.server.imports.glob(".partial/*"))
        self.in_the_middle("Download", self.request(default, sst), lambda: parts() > 10_000)
        (part,) = self.server.imports.glob(".partial/*")
        part.write_bytes(b"\0" * part.stat().st_size)
        answer = self.server.imp("Download", self.request(default, sst))
        self.assertFalse(answer.HasField("error"), answer)
        self.assertEqual(answer.length, size)

    def test_an_apply_that_was_killed_is_repeated_to_the_same_end(self):
        basic = times("log-basic")
        region = self.region()
        chosen = [(path, info) for path, info in client.slices("log-basic") if info.type == 1]
        metas = [client.kv_meta(path, info, region, 0, basic["mid_ts"]) for path, info in chosen]
        request = client.apply_request(GOLDEN / "log-basic" / "archive", region, metas)
        self.limit(sum(info.length for _, info in chosen) // 3)
        began = time.monotonic()
        self.in_the_middle("Apply", request, lambda: time.monotonic() - began > 1)
        self.assertEqual(self.files("*.sst*"), [])
        self.assertEqual(self.files(".temp/*"), [])
        self.assertEqual(self.server.apply("log-basic", basic["start_ts"], basic["mid_ts"]), [])
        self.assertEqual(self.server.scan(basic["mid_ts"]), pairs_of("log-basic/scan-mid.tsv.gz"))


class SpeedLimit(Case):
    def set(self, **fields):
        request = new("import_sstpb.SetDownloadSpeedLimitRequest", **fields)
        self.server.imp("SetDownloadSpeedLimit", request)

    def timed(self):
        name = max((SNAPSHOT / "1").iterdir(), key=lambda path: path.stat().st_size).name
        began = time.monotonic()
        _, answer = self.download(f"1/{name}", "default")
        self.assertFalse(answer.HasField("error"), answer)
        return time.monotonic() - began

    def test_the_smallest_limit_holds_until_it_is_removed(self):
        self.set(speed_limit=10_000_000_000)
        self.set(speed_limit=50_000, task_id="slow", ttl_seconds=60)
        self.assertGreater(self.timed(), 1.2)
        self.set(speed_limit=0, task_id="slow")
        self.assertLess(self.timed(), 1.0)
        with self.assertRaises(grpc.RpcError) as refused:
            self.set(speed_limit=1, task_id="without a time to live")
        self.assertEqual(refused.exception.code(), grpc.StatusCode.UNKNOWN)


# The real server accepts these in silence and loses or damages data; ours refuses each of them,
# with this text.
REFUSED_HERE = {
    "odd: two metas, one rule": "2 metas but 1 rewrite rules",
    "odd: unknown cf": "unknown column family",
    "cached: sha256 differs": "checksums do not match",
    "cached: length differs": "Cannot read",
    "cached: compression lz4": "compression type is unimplemented",
}
# Ours names the object too.
OTHER_WORDS = {"error: storage directory missing"}
# The recording keeps this much of a request.
CUT_AT = 3000
RECORDED_REGIONS = [4, 6, 8, 10, 2]
RECORDED_VERSION = 5


class Transcript(Case):
    """Every call of `import-transcript.json`, in order."""

    def setUp(self):
        super().setUp()
        self.server.split(*RECORDED_SPLITS)
        ours = self.server.regions()
        self.regions = dict(zip(RECORDED_REGIONS, ours, strict=True))
        self.peers = {region.id: (recorded + 1 if recorded != 2 else 3)
                      for recorded, region in self.regions.items()}
        self.version = ours[0].region_epoch.version - RECORDED_VERSION

    def region(self):
        return self.server.regions()[0]

    def translate(self, message):
        """Our ids and epochs in place of the recorded ones."""
        for field, value in message.ListFields():
            name = field.name
            if field.message_type is not None:
                for inner in value if field.is_repeated else [value]:
                    self.translate(inner)
            elif name == "region_id" or (field.containing_type.full_name, name) == ("metapb.Region", "id"):
                if value in self.regions:
                    setattr(message, name, self.regions[value].id)
            elif (field.containing_type.full_name, name) == ("metapb.Peer", "id"):
                for recorded, region in self.regions.items():
                    if self.peers[region.id] == value:
                        setattr(message, name, region.peers[0].id)
                        break
            elif (field.containing_type.full_name, name) == ("metapb.RegionEpoch", "version"):
                setattr(message, name, value + self.version)
        return message

    def parse(self, kind, text):
        message = WIRE.type(kind)()
        text = text.replace('"ARCHIVE"', json.dumps(str(GOLDEN / "log-basic" / "archive")))
        text = text.replace('"SNAPSHOT"', json.dumps(str(SNAPSHOT)))
        text_format.Parse(text, message)
        return self.translate(message)

    def whole_request(self, call, kind):
        """The request; what the recording cut off is put back from the archive's metadata."""
        text = call["request"]
        if len(text) < CUT_AT:
            return self.parse(kind, text)
        self.assertEqual(call["step"], "apply region 2 cf write (9 slices)")
        request = self.parse(kind, text[:text.rindex(" metas {")])
        first = request.metas[0]
        mine = [(path, info) for path, info in client.slices("log-basic")
                if info.region_id == 8 and info.cf == "write"]
        mine.sort(key=lambda entry: entry[1].type == 0)
        self.assertEqual(len(mine), 9)
        del request.metas[:]
        for path, info in mine:
            meta = request.metas.add()
            meta.CopyFrom(client.kv_meta(path, info, self.regions[8], first.start_ts,
                                         first.restore_ts))
            request.rewrite_rules.add()
        return request

    def comparable(self, answer):
        """Without free text, and without what TiKV leaves at 0."""
        copy = type(answer).FromString(answer.SerializeToString())
        known = copy.DESCRIPTOR.fields_by_name
        for field in {"crc32", "length"} & set(known):
            copy.ClearField(field)
        if "error" in known and copy.HasField("error"):
            copy.error.ClearField("message")
            inner = "store_error" in copy.error.DESCRIPTOR.fields_by_name
            if inner and copy.error.HasField("store_error"):
                copy.error.store_error.ClearField("message")
        return copy

    def check(self, call):
        path = f"/import_sstpb.ImportSST/{call['rpc']}"
        request_kind, answer_kind = WIRE.methods[path]
        request = self.whole_request(call, request_kind)
        if call["answer"].startswith("gRPC UNIMPLEMENTED"):
            with self.assertRaises(grpc.RpcError) as refused:
                self.server.imp(call["rpc"], request)
            self.assertEqual(refused.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
            return
        answer = self.server.imp(call["rpc"], request)
        if call["step"] in REFUSED_HERE:
            self.assertFalse(call["answer"].startswith("error"), "the real server accepted it")
            self.assertIn(REFUSED_HERE[call["step"]], answer.error.message)
            return
        recorded = self.parse(answer_kind, call["answer"])
        self.assertEqual(self.comparable(answer), self.comparable(recorded),
                         f"{call['step']}: {answer}")
        # Our text begins with the recorded one's first words, on which BR decides.
        if call["step"] not in OTHER_WORDS and recorded.ListFields() and hasattr(recorded, "error"):
            words = recorded.error.message.split()[:2]
            self.assertEqual(answer.error.message.split()[:2], words, call["step"])

    def test_every_recorded_call_gets_the_recorded_answer_or_a_refusal_of_the_damage(self):
        basic = times("log-basic")
        wanted = pairs_of("log-basic/scan-mid.tsv.gz")
        calls = json.loads((GOLDEN / "import-transcript.json").read_text())
        self.assertLessEqual(set(REFUSED_HERE), {call["step"] for call in calls})
        done = 0
        for call in calls:
            with self.subTest(call["step"]):
                if call["step"].startswith("apply region 0 cf default"):
                    self.assertEqual(self.server.scan(basic["mid_ts"]), {}, "nothing was written yet")
                if call["step"] in ("scan after apply", "download default"):
                    self.assertEqual(self.server.scan(basic["mid_ts"]), wanted)
                if "rpc" in call and call["rpc"]:
                    self.check(call)
                    done += 1
        self.assertEqual(done, 33)


def ctr(key, iv, data):
    """AES-CTR of the `openssl` command, so that the key schedule is not ours."""
    command = ["openssl", "enc", "-aes-256-ctr", "-K", key.hex(), "-iv", iv.hex()]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


if __name__ == "__main__":
    unittest.main()
