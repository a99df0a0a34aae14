"""What the checker knows of the archive's bytes, written down a second time.

The project has its own reader and writer of all this in Rust. They agree with each other, which
proves little; this one was made from the format's description alone and shares nothing with them.
"""

import zstandard


class Damage(Exception):
    """The bytes cannot be read any further."""


# --- protobuf, as far as the metadata needs it -------------------------------------------------

# message -> field number -> (name, kind, repeated); kinds: u uint64/bool/enum, i int64, b bytes,
# s string, or the name of a message.
SCHEMA = {
    "Metadata": {
        1: ("files", "DataFileInfo", True),
        2: ("store_id", "i", False),
        3: ("resolved_ts", "u", False),
        4: ("max_ts", "u", False),
        5: ("min_ts", "u", False),
        6: ("file_groups", "DataFileGroup", True),
        7: ("meta_version", "u", False),
    },
    "DataFileGroup": {
        1: ("path", "s", False),
        2: ("data_files_info", "DataFileInfo", True),
        3: ("min_ts", "u", False),
        4: ("max_ts", "u", False),
        5: ("min_resolved_ts", "u", False),
        6: ("length", "u", False),
    },
    "DataFileInfo": {
        1: ("sha256", "b", False),
        2: ("path", "s", False),
        3: ("number_of_entries", "i", False),
        4: ("min_ts", "u", False),
        5: ("max_ts", "u", False),
        6: ("resolved_ts", "u", False),
        7: ("region_id", "i", False),
        8: ("start_key", "b", False),
        9: ("end_key", "b", False),
        10: ("cf", "s", False),
        11: ("type", "u", False),
        12: ("is_meta", "u", False),
        13: ("table_id", "i", False),
        14: ("length", "u", False),
        15: ("min_begin_ts", "u", False),
        16: ("range_offset", "u", False),
        17: ("range_length", "u", False),
        18: ("compression_type", "u", False),
        19: ("crc64xor", "u", False),
        20: ("region_start_key", "b", False),
        21: ("region_end_key", "b", False),
        22: ("region_epoch", "RegionEpoch", True),
        23: ("file_encryption_info", "b", False),
    },
    "RegionEpoch": {1: ("conf_ver", "u", False), 2: ("version", "u", False)},
    "BackupMeta": {
        1: ("cluster_id", "u", False),
        2: ("cluster_version", "s", False),
        5: ("start_version", "u", False),
        6: ("end_version", "u", False),
        12: ("version", "i", False),
    },
}
DEFAULTS = {"u": 0, "i": 0, "b": b"", "s": ""}
WIRE_TYPE = {"u": 0, "i": 0}


def varint(data, at):
    """The unsigned LEB128 number at `at`, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Damage("a varint is cut or too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value & (1 << 64) - 1, at


def raw_fields(data):
    """(field number, wire type, value) of a message's fields, in order."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at : at + size], at + size
        elif wire == 2:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise Damage(f"wire type {wire}")
        if at > len(data) or number == 0:
            raise Damage("a field is cut")
        yield number, wire, value


def decode(message, data, strict=True):
    """A protobuf message as a dict with every known field."""
    fields = SCHEMA[message]
    out = {name: [] if many else DEFAULTS.get(kind) for name, kind, many in fields.values()}
    for number, wire, value in raw_fields(data):
        if number not in fields:
            if strict:
                raise Damage(f"{message} has an unknown field {number}")
            continue
        name, kind, many = fields[number]
        if wire != WIRE_TYPE.get(kind, 2):
            raise Damage(f"{message}.{name} has wire type {wire}")
        if kind in SCHEMA:
            value = decode(kind, value)
        elif kind == "s":
            value = value.decode()
        elif kind == "i" and value >= 1 << 63:
            value -= 1 << 64
        if many:
            out[name].append(value)
        else:
            out[name] = value
    return out


# --- records ------------------------------------------------------------------------------------

CRC_POLY = 0xC96C5795D7870F42  # ECMA-182, reflected; all ones in and out (CRC-64/XZ)
CRC_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ CRC_POLY if _byte & 1 else _byte >> 1
    CRC_TABLE.append(_byte)
ALL_ONES = (1 << 64) - 1
_of_zeros = [0]  # [n] = crc64 of n zero bytes
_state_of_zeros = ALL_ONES


def crc_of_zeros(count):
    """crc64 of `count` zero bytes, from a table that grows as needed."""
    global _state_of_zeros
    while len(_of_zeros) <= count:
        _state_of_zeros = CRC_TABLE[_state_of_zeros & 0xFF] ^ _state_of_zeros >> 8
        _of_zeros.append(_state_of_zeros ^ ALL_ONES)
    return _of_zeros[count]


class CrcXor:
    """XOR of the crc64 of many strings, with a single pass over bytes in Python.

    A CRC whose register starts at zero is linear and does not see leading zeros, so the strings can
    be XORed first, aligned at their ends; what starting at all ones adds depends on the length only.
    """

    def __init__(self):
        self.mixed = 0
        self.constant = 0

    def add(self, data):
        self.mixed ^= int.from_bytes(data, "big")
        self.constant ^= crc_of_zeros(len(data))

    def value(self):
        register = 0
        for byte in self.mixed.to_bytes((self.mixed.bit_length() + 7) // 8, "big"):
            register = CRC_TABLE[(register ^ byte) & 0xFF] ^ register >> 8
        return register ^ self.constant


def one_frame(stored, expected):
    """The plaintext of exactly one zstd frame of at most `expected` bytes."""
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    plain = bytearray()
    for at in range(0, len(stored), 1 << 16):
        if reader.eof:
            raise Damage("bytes follow the zstd frame")
        try:
            plain += reader.decompress(stored[at : at + (1 << 16)])
        except zstandard.ZstdError as error:
            raise Damage(f"not a zstd frame: {error}") from error
        if len(plain) > expected:
            raise Damage(f"the frame holds more than the {expected} bytes of `length`")
    if not reader.eof:
        raise Damage("the zstd frame is cut")
    if reader.unused_data:
        raise Damage("bytes follow the zstd frame")
    return bytes(plain)


def records(plain):
    """(versioned key, value) of a plaintext slice: u32 LE length and bytes, twice."""
    at = 0
    while at < len(plain):
        parts = []
        for _ in range(2):
            size = int.from_bytes(plain[at : at + 4], "little")
            part = plain[at + 4 : at + 4 + size]
            if at + 4 > len(plain) or len(part) != size:
                raise Damage(f"a record is cut at byte {at}")
            parts.append(part)
            at += 4 + size
        yield parts[0], parts[1]


def split_key(key):
    """User key and ts of a versioned key: groups of 8 bytes and a marker, then the inverted ts."""
    user, at = bytearray(), 0
    while True:
        group, marker = key[at : at + 8], key[at + 8 : at + 9]
        if len(group) < 8 or not marker:
            raise Damage(f"key {key.hex()} is not encoded")
        at += 9
        pad = 0xFF - marker[0]
        if pad == 0:
            user += group
            continue
        if pad > 8 or group[8 - pad :] != bytes(pad):
            raise Damage(f"key {key.hex()} is badly padded")
        user += group[: 8 - pad]
        break
    if len(key) != at + 8:
        raise Damage(f"key {key.hex()} has no ts of 8 bytes")
    return bytes(user), int.from_bytes(key[at:], "big") ^ ALL_ONES


def table_of(user_key):
    """(table id, is meta) as TiKV's router tells them from a user key."""
    if user_key[:1] == b"m":
        return 0, True
    if user_key[:1] == b"t" and len(user_key) >= 9:
        return int.from_bytes(user_key[1:9], "big") - (1 << 63), False
    return 0, False


def write_record(value):
    """(type letter, start ts, has a short value) of a value in the write CF."""
    kind = value[:1].decode("latin-1")
    if kind not in "PDLR" or not kind:
        raise Damage(f"{value.hex()} is no write record")
    start_ts, at = varint(value, 1)
    short = False
    while at < len(value):
        flag, at = value[at : at + 1], at + 1
        if flag == b"v":
            short = True
            at += 1 + (value[at] if at < len(value) else 0)
        elif flag == b"F":
            at += 8
        elif flag == b"l":
            _, at = varint(value, at + 8)
        elif flag == b"S":
            _, at = varint(value, at)
        elif flag != b"R":
            raise Damage(f"{value.hex()} is no write record")
    if at != len(value):
        raise Damage(f"{value.hex()} is no write record")
    return kind, start_ts, short
