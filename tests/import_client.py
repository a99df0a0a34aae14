"""A client of `import_sstpb.ImportSST` that shares no code with the project.

Its messages are made at run time from the wire table of kvproto, so that a wrong number in our
`.proto` files shows as a call that does not work. It also starts the playground, reads regions and
pairs, and applies an archive the way BR does.
"""

import gzip
import json
import os
import pathlib
import subprocess
import zlib

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "proto" / "tests" / "data" / "kvproto.tsv"
GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
TYPES = {
    "double": 1, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "message": 11,
    "bytes": 12, "uint32": 13, "enum": 14,
}
PATIENCE = 60


# --- the wire, from the table -------------------------------------------------------------------

def package_of(name):
    """The leading parts of a full name that do not begin with a capital letter."""
    parts = name.split(".")
    first = next(i for i, part in enumerate(parts) if part[0].isupper())
    return ".".join(parts[:first])


class Wire:
    """Message classes and methods of all files in the table."""

    def __init__(self, table=TABLE):
        rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
        rows = [row + [""] * (7 - len(row)) for row in rows]
        self.methods = {
            f"/{owner}/{name}": [part.strip() for part in kind.split("->")]
            for _, what, owner, name, _, _, kind in rows if what == "rpc"
        }
        self.home = {row[2]: row[0] for row in rows if row[1] != "rpc"}
        # A message without fields of its own stands in the table under its name.
        self.home |= {row[2] or row[3]: row[0] for row in rows if row[1] == "message"}
        # Fields of types that the table leaves out are unknown fields to this client.
        self.rows = [row for row in rows
                     if " " not in row[6] or row[1] == "rpc" or row[6].split(" ", 1)[1] in self.home]
        self.pool = descriptor_pool.DescriptorPool()
        self.added = set()
        for file in sorted({row[0] for row in rows}):
            self.add_file(file)

    def add_file(self, file):
        """Adds a file after those that it refers to."""
        if file in self.added:
            return
        self.added.add(file)
        rows = [row for row in self.rows if row[0] == file and row[1] != "rpc"]
        if not rows:
            return
        used = {row[6].split(" ", 1)[1] for row in rows if " " in row[6]}
        needs = sorted({self.home[name] for name in used} - {file})
        for other in needs:
            self.add_file(other)
        proto = descriptor_pb2.FileDescriptorProto(name=file, syntax="proto3")
        proto.package = package_of(rows[0][2])
        proto.dependency.extend(needs)
        self.found = {}
        for _, what, owner, name, number, label, kind in rows:
            if what == "message":
                self.message(proto, owner or name)
            elif what == "enum":
                values = self.enum(proto, owner).value
                values.add(name=name, number=int(number))
            else:
                self.field(self.message(proto, owner), name, int(number), label, kind)
        for kept in self.found.values():
            if isinstance(kept, descriptor_pb2.EnumDescriptorProto):
                ordered = sorted(kept.value, key=lambda value: value.number != 0)
                ordered = [descriptor_pb2.EnumValueDescriptorProto.FromString(v.SerializeToString())
                           for v in ordered]
                del kept.value[:]
                kept.value.extend(ordered)
        self.pool.Add(proto)

    def place(self, proto, owner):
        """What holds the type of that name (the file, or another message), and its short name."""
        outer, _, short = owner.rpartition(".")
        return (proto if outer == proto.package else self.message(proto, outer)), short

    def message(self, proto, owner):
        if owner not in self.found:
            holder, short = self.place(proto, owner)
            made = holder.message_type if holder is proto else holder.nested_type
            self.found[owner] = made.add(name=short)
            # A map is a repeated entry message.
            if short.endswith("Entry") and holder is not proto:
                self.found[owner].options.map_entry = True
        return self.found[owner]

    def enum(self, proto, owner):
        if owner not in self.found:
            holder, short = self.place(proto, owner)
            self.found[owner] = holder.enum_type.add(name=short)
        return self.found[owner]

    @staticmethod
    def field(message, name, number, label, kind):
        kind, _, target = kind.partition(" ")
        label, _, oneof = label.partition(" oneof=")
        field = message.field.add(name=name, number=number, type=TYPES[kind])
        field.label = 3 if label == "repeated" else 1
        if target:
            field.type_name = "." + target
        if oneof:
            names = [known.name for known in message.oneof_decl]
            if oneof not in names:
                message.oneof_decl.add(name=oneof)
                names.append(oneof)
            field.oneof_index = names.index(oneof)

    def type(self, name):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))


WIRE = Wire()


def new(kind, /, **fields):
    return WIRE.type(kind)(**fields)


# --- keys ---------------------------------------------------------------------------------------

def encode_key(raw):
    """Memcomparable: groups of 8 bytes and 0xFF minus the number of padding bytes."""
    out = b""
    for at in range(0, len(raw) + 1, 8):
        group = raw[at:at + 8]
        out += group.ljust(8, b"\0") + bytes([0xFF - (8 - len(group))])
    return out


def decode_key(encoded):
    raw = b""
    for at in range(0, len(encoded), 9):
        group, pad = encoded[at:at + 8], 0xFF - encoded[at + 8]
        raw += group[:8 - pad]
        if pad:
            break
    return raw


def at_ts(raw, ts):
    return encode_key(raw) + (~ts & (1 << 64) - 1).to_bytes(8, "big")


# --- golden data --------------------------------------------------------------------------------

def pairs_of(name):
    """{user key: value} of a recorded scan."""
    lines = gzip.open(GOLDEN / name, "rt").read().splitlines()
    return dict(map(bytes.fromhex, line.split("\t")) for line in lines)


def times(folder):
    return json.loads((GOLDEN / folder / "times-and-regions.json").read_text())


def slices(folder):
    """(object, DataFileInfo) of every slice of an archive, in the order of its metas."""
    found = []
    for path in sorted((GOLDEN / folder / "archive/v1/backupmeta").iterdir()):
        meta = WIRE.type("backup.Metadata").FromString(path.read_bytes())
        found += [(group.path, info) for group in meta.file_groups for info in group.data_files_info]
    return found


def local(path):
    backend = new("backup.StorageBackend")
    backend.local.path = str(path)
    return backend


# --- the server ---------------------------------------------------------------------------------

class Playground:
    """The binary, and clients of its two ports."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.start()

    def start(self):
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        target = os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(home) / "tikv-pitr" / "target"
        binary = pathlib.Path(target) / "debug" / "tikv-pitr-playground"
        with open(self.folder / "playground.log", "ab") as log:
            self.process = subprocess.Popen(
                [binary, "--data-dir", self.folder / "data", "--pd-addr", "127.0.0.1:0",
                 "--store-addr", "127.0.0.1:0", "--resolved-ts-interval", "3600000"],
                stdout=subprocess.PIPE, stderr=log,
            )
        said = json.loads(self.process.stdout.readline())
        self.cluster_id = said["cluster_id"]
        options = [("grpc.max_receive_message_length", -1)]
        self.store = grpc.insecure_channel(said["store_addr"], options)
        self.pd = grpc.insecure_channel(said["pd_addr"], options)

    def kill(self):
        """Ends the process without a word, as a crash does."""
        self.process.kill()
        self.close()

    def stop(self):
        self.process.terminate()
        self.close()

    def close(self):
        self.process.wait(PATIENCE)
        self.process.stdout.close()
        self.store.close()
        self.pd.close()

    @property
    def imports(self):
        return self.folder / "data" / "import"

    def call(self, channel, path, request, timeout=PATIENCE):
        """One unary call; `request` is a message or bytes."""
        answer = WIRE.type(WIRE.methods[path][1])
        send = channel.unary_unary(path, lambda m: m if isinstance(m, bytes) else
                                   m.SerializeToString(), answer.FromString)
        return send(request, timeout=timeout)

    def imp(self, name, request=b"", timeout=PATIENCE):
        return self.call(self.store, f"/import_sstpb.ImportSST/{name}", request, timeout)

    def regions(self):
        request = new("pdpb.ScanRegionsRequest", limit=1000)
        request.header.cluster_id = self.cluster_id
        answer = self.call(self.pd, "/pdpb.PD/ScanRegions", request)
        return [region.region for region in answer.regions]

    def split(self, *raw):
        """Splits at user keys, those of one region at once."""
        for region in self.regions():
            mine = [key for key in raw if region.start_key < encode_key(key)
                    and (not region.end_key or encode_key(key) < region.end_key)]
            if mine:
                request = new("kvrpcpb.SplitRegionRequest", context=context(region),
                              split_keys=mine)
                answer = self.call(self.store, "/tikvpb.Tikv/SplitRegion", request)
                assert not answer.HasField("region_error"), answer

    def scan(self, ts):
        """{user key: value} of the whole store at `ts`."""
        found = {}
        for region in self.regions():
            start = decode_key(region.start_key)
            while start is not None:
                request = new("kvrpcpb.ScanRequest", context=context(region), start_key=start,
                              end_key=decode_key(region.end_key), limit=1000, version=ts)
                answer = self.call(self.store, "/tikvpb.Tikv/KvScan", request)
                assert not answer.HasField("region_error"), answer
                assert not any(pair.HasField("error") for pair in answer.pairs), answer
                found |= {pair.key: pair.value for pair in answer.pairs}
                full = len(answer.pairs) == 1000
                start = answer.pairs[-1].key + b"\0" if full else None
        return found

    # --- what a restore driver does -------------------------------------------------------------

    def apply(self, folder, start_ts, restore_ts, **fields):
        """Sends every slice to every region that it overlaps: values before write records, puts
        before deletes, as BR orders them. Answers the errors."""
        errors = []
        for is_delete in (False, True):
            for cf in ("default", "write"):
                for region in self.regions():
                    metas = [kv_meta(path, info, region, 0 if cf == "default" else start_ts,
                                     restore_ts)
                             for path, info in slices(folder)
                             if info.cf == cf and (info.type == 0) == is_delete
                             and overlaps(info, region)]
                    if not metas:
                        continue
                    request = apply_request(GOLDEN / folder / "archive", region, metas, **fields)
                    answer = self.imp("Apply", request)
                    if answer.HasField("error"):
                        errors.append(answer.error)
        return errors

    def upload(self, meta, data, chunk=100_000):
        """Streams a file."""
        request = WIRE.type("import_sstpb.UploadRequest")
        messages = [request(meta=meta)]
        messages += [request(data=data[at:at + chunk]) for at in range(0, len(data), chunk)]
        path = "/import_sstpb.ImportSST/Upload"
        send = self.store.stream_unary(
            path, request.SerializeToString,
            WIRE.type("import_sstpb.UploadResponse").FromString,
        )
        return send(iter(messages), timeout=PATIENCE)


def overlaps(info, region):
    return (not region.end_key or info.start_key < region.end_key) and \
        info.end_key >= region.start_key


def context(region):
    made = new("kvrpcpb.Context", region_id=region.id)
    made.region_epoch.CopyFrom(region.region_epoch)
    made.peer.CopyFrom(region.peers[0])
    return made


def kv_meta(path, info, region, start_ts, restore_ts):
    return new(
        "import_sstpb.KVMeta", name=path, length=info.length, cf=info.cf,
        is_delete=info.type == 0, start_ts=start_ts, restore_ts=restore_ts, sha256=info.sha256,
        range_offset=info.range_offset, range_length=info.range_length,
        compression_type=info.compression_type, start_key=region.start_key,
        end_key=region.end_key,
    )


def apply_request(archive, region, metas, **fields):
    request = new("import_sstpb.ApplyRequest", context=context(region), metas=metas,
                  storage_backend=local(archive), **fields)
    for _ in metas:
        request.rewrite_rules.add()
    return request


def sst_meta(region, cf, uuid, start=b"", end=b"", **fields):
    made = new("import_sstpb.SSTMeta", uuid=uuid, cf_name=cf, region_id=region.id, **fields)
    made.range.start, made.range.end = start, end
    made.region_epoch.CopyFrom(region.region_epoch)
    return made


def crc32(data):
    return zlib.crc32(data) & 0xFFFFFFFF
