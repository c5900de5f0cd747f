"""The journal's format: bytes that Ceph 16.2.15 wrote, round trips, and damage of every kind."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree import errors
from rbdtree.model import record
from rbdtree.model.encoding import frame, string
from rbdtree.model.journal import PREAMBLE, Entry, Place, Raw, checksum, decode, next_entry, only_padding
from rbdtree.model.journal_client import (
    CLIENT_DATA,
    Client,
    Commit,
    Predecessor,
    Tag,
    TagData,
    decode_client,
    decode_clients,
    decode_positions,
    decode_tag,
    decode_tags,
    encode_positions,
)

# One image of 32 MiB at a live 16.2.15, splay width 4: the four objects whole, the image's own client, its second tag.
OBJECTS = {
    0: (
        "939758532659413101000000000000000001000000000000003c000000050128000000010000000010000000000000100000000000000010"
        "000000676f6c64656e2121676f6c64656e21210101080000004fa1036ba62edb03b8d6fc5f93975853265941310104000000000000000100"
        "00000000000018000000050104000000020000000101080000004fa1036b1690f30440200c28939758532659413101080000000000000001"
        "000000000000002c0000000501180000000300000002000000000000000200000000000000000000000101080000004fa1036b179484078d"
        "c805039397585326594131010c0000000000000001000000000000002c000000050118000000030000000400000000000000040000000000"
        "0000000000000101080000004fa1036b2e1bb50896a3dbe7939758532659413101100000000000000001000000000000002c000000050118"
        "0000000300000006000000000000000600000000000000000000000101080000004fa1036bfd0c230d4edcba8d9397585326594131011400"
        "00000000000001000000000000002c0000000501180000000300000008000000000000000800000000000000000000000101080000004fa1"
        "036be6398b0e3f1122fa939758532659413101180000000000000001000000000000002c000000050118000000030000000a000000000000"
        "000a00000000000000000000000101080000004fa1036b2efbba0f277eea8a93975853265941310100000000000000000200000000000000"
        "260000000501120000000a00000001000000000000000200000067320101080000004fa1036ba8139312c20813d5"
    ),
    1: (
        "939758532659413101010000000000000001000000000000002d000000050119000000000000000500000000000000e80300000000000000"
        "000000000101080000004fa1036b4d681904ab7f9dfb939758532659413101050000000000000001000000000000003000000005011c0000"
        "00040000000100000000000000020000007331010104000000000000000101080000004fa1036ba3622c052fae1dfc939758532659413101"
        "090000000000000001000000000000003000000005011c000000080000000300000000000000020000007331010104000000000000000101"
        "080000004fa1036b8ea3e4072fac02bb9397585326594131010d0000000000000001000000000000003000000005011c0000000900000005"
        "00000000000000020000007332010104000000000000000101080000004fa1036b8f68270912d81219939758532659413101110000000000"
        "00000100000000000000280000000501140000000b000000070000000000000000000001000000000101080000004fa1036b6d3ca70d75cc"
        "dd3c9397585326594131011500000000000000010000000000000025000000050111000000110000000900000000000000010000006b0101"
        "080000004fa1036ba17efa0eccc5817f93975853265941310119000000000000000100000000000000180000000501040000000200000001"
        "01080000004fa1036b97f10710a9b86208939758532659413101010000000000000002000000000000002c00000005011800000003000000"
        "01000000000000000100000000000000000000000101080000004fa1036b6021f812a5e4446f"
    ),
    2: (
        "939758532659413101020000000000000001000000000000002d000000050119000000000000000000000000000000000002000000000001"
        "000001000101080000004fa1036bc16e64048762ad2b939758532659413101060000000000000001000000000000002c0000000501180000"
        "000300000001000000000000000100000000000000000000000101080000004fa1036bb027fb06b82643a39397585326594131010a000000"
        "0000000001000000000000002c0000000501180000000300000003000000000000000300000000000000000000000101080000004fa1036b"
        "e1233c0819bafbad9397585326594131010e0000000000000001000000000000002c00000005011800000003000000050000000000000005"
        "00000000000000000000000101080000004fa1036bb6e25d09532b8845939758532659413101120000000000000001000000000000002c00"
        "00000501180000000300000007000000000000000700000000000000000000000101080000004fa1036b8169f30d0525d308939758532659"
        "413101160000000000000001000000000000002c000000050118000000030000000900000000000000090000000000000000000000010108"
        "0000004fa1036b062c1d0f11d0d97b9397585326594131011a000000000000000100000000000000290000000501150000000f0000000b00"
        "0000000000001800000000000000010101080000004fa1036b1c681d109a1d90ae"
    ),
    3: (
        "939758532659413101030000000000000001000000000000002c020000050118020000120000000000100000000000000800000000000000"
        "02"
    )
    + "00" * 514
    + (
        "0101080000004fa1036bc4cc9404e215bd1a939758532659413101070000000000000001000000000000003000000005011c000000070000"
        "000200000000000000020000007331010104000000000000000101080000004fa1036b8d674e071ccd72899397585326594131010b000000"
        "0000000001000000000000003400000005012000000006000000040000000000000002000000733204000000000000000200000073310101"
        "080000004fa1036b696b8f08296767909397585326594131010f0000000000000001000000000000003000000005011c0000000500000006"
        "00000000000000020000007332010104000000000000000101080000004fa1036be054b6090e9ae9d0939758532659413101130000000000"
        "000001000000000000002a000000050116000000100000000800000000000000010000006b01000000760101080000004fa1036b2e95620e"
        "50cc035693975853265941310117000000000000000100000000000000280000000501140000000e0000000a000000000000000900000000"
        "0000000101080000004fa1036b73c3880f47b41e579397585326594131011b0000000000000001000000000000002c000000050118000000"
        "030000000b000000000000000b00000000000000000000000101080000004fa1036b67ffcb10e7c56cb9"
    ),
}
CLIENT = (
    "01019e000000000000001300000002010d0000000000000000000000000000000001017c0000000400000001011800000001000000000000"
    "0002000000000000000100000000000000010118000000000000000000000002000000000000000000000000000000010118000000030000"
    "000000000001000000000000001b00000000000000010118000000020000000000000001000000000000001a0000000000000000"
)
TAG = "01012d000000020000000000000000000000000000001900000000000000000000000101000000000000001b00000000000000"

LARGEST = 17 << 20


def entries(buffer: bytes, number: int = 0, base: int = 0, largest: int = LARGEST) -> list[Entry]:
    found, at = [], 0
    while True:
        raw, at = next_entry(buffer, at, base, number, largest)
        if raw is None:
            return found
        found.append(decode(raw))


def packed(payload: bytes, entry_tid: int = 0, tag_tid: int = 0) -> bytes:
    body = struct.pack("<QBQQI", PREAMBLE, 1, entry_tid, tag_tid, len(payload)) + payload
    return body + struct.pack("<I", checksum(body))


def event(kind: int, body: bytes, version: int = 5, compat: int = 1) -> bytes:
    stamp = frame(struct.pack("<II", 1_700_000_000, 500_000_000))
    return frame(struct.pack("<I", kind) + body, version, compat) + stamp


def one(kind: int, body: bytes) -> record.Record:
    return decode(Raw(Place(3, 9, 5, 77), event(kind, body))).record


def golden() -> list[Entry]:
    found = [e for number, text in OBJECTS.items() for e in entries(bytes.fromhex(text), number)]
    return sorted(found, key=lambda entry: entry.place)


def test_the_journal_that_ceph_wrote() -> None:
    found = golden()
    assert [(e.place.tag_tid, e.place.entry_tid) for e in found] == [(1, n) for n in range(28)] + [
        (2, n) for n in range(2)
    ]
    assert all(e.place.entry_tid % 4 == e.place.object_number for e in found)
    assert [e.record for e in found] == [
        record.Write(offset=4096, data=b"golden!!golden!!"),
        record.Zero(offset=5, length=1000),
        record.Discard(offset=0, length=131072, granularity=65536),
        record.WriteSame(offset=1048576, length=2048, pattern=bytes(512)),
        record.Flush(),
        record.SnapCreate(op_tid=1, name="s1", space=record.Space.USER),
        record.OpFinish(op_tid=1, result=0),
        record.SnapProtect(op_tid=2, name="s1", space=record.Space.USER),
        record.OpFinish(op_tid=2, result=0),
        record.SnapUnprotect(op_tid=3, name="s1", space=record.Space.USER),
        record.OpFinish(op_tid=3, result=0),
        record.SnapRename(op_tid=4, snapshot_id=4, name="s1", new="s2"),
        record.OpFinish(op_tid=4, result=0),
        record.SnapRollback(op_tid=5, name="s2", space=record.Space.USER),
        record.OpFinish(op_tid=5, result=0),
        record.SnapRemove(op_tid=6, name="s2", space=record.Space.USER),
        record.OpFinish(op_tid=6, result=0),
        record.Resize(op_tid=7, size=16777216),
        record.OpFinish(op_tid=7, result=0),
        record.MetadataSet(op_tid=8, key="k", value="v"),
        record.OpFinish(op_tid=8, result=0),
        record.MetadataRemove(op_tid=9, key="k"),
        record.OpFinish(op_tid=9, result=0),
        record.SnapLimit(op_tid=10, limit=9),
        record.OpFinish(op_tid=10, result=0),
        record.Flush(),
        record.UpdateFeatures(op_tid=11, features=24, enabled=True),
        record.OpFinish(op_tid=11, result=0),
        record.Rename(op_tid=1, name="g2"),
        record.OpFinish(op_tid=1, result=0),
    ]
    assert {int(e.time) for e in found} <= set(range(1795400015, 1795400016))
    assert sum(e.size for e in found) == sum(len(text) // 2 for text in OBJECTS.values())


def test_client_and_tag_that_ceph_wrote() -> None:
    client = decode_client(bytes.fromhex(CLIENT))
    assert client.client_id == ""
    assert client.positions == (Commit(1, 2, 1), Commit(0, 2, 0), Commit(3, 1, 27), Commit(2, 1, 26))
    assert not client.disconnected
    assert client.encode() == bytes.fromhex(CLIENT)
    tag = decode_tag(bytes.fromhex(TAG))
    assert tag == Tag(2, 0, TagData("", Predecessor("", 1, 27)))
    assert tag.encode() == bytes.fromhex(TAG)


def test_the_checksum_is_cephs() -> None:
    assert checksum(b"") == 0
    assert checksum(b"123456789") != 0xE3069283, "the usual CRC-32C inverts at both ends"
    whole = bytes.fromhex(OBJECTS[0])
    length = 33 + struct.unpack_from("<I", whole, 25)[0]
    assert checksum(whole[: length - 4]) == struct.unpack_from("<I", whole, length - 4)[0]


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (10, struct.pack("<Q", 4) + string("new"), record.Rename(4, "new")),
        (12, struct.pack("<Q", 4), record.Flatten(4)),
        (13, b"", record.DemotePromote()),
        (18, struct.pack("<QQ", 8, 6) + string(b"abc"), record.WriteSame(8, 6, b"abc")),
        (19, struct.pack("<QQ", 8, 2) + string(b"ab") + string(b"cd"), record.CompareAndWrite(8, b"ab", b"cd")),
        (3, struct.pack("<QQi", 4, 4, -22), record.OpFinish(4, -22)),
        (
            4,
            struct.pack("<Q", 4) + string("s") + frame(struct.pack("<I", 3) + b"more of a mirror snapshot"),
            record.SnapCreate(4, "s", record.Space.MIRROR),
        ),
        (1, struct.pack("<QQ", 8, 2) + string(b"ab") + b"a field of a later release", record.Write(8, b"ab")),
    ],
)
def test_events_seldom_seen(kind: int, body: bytes, expected: record.Record) -> None:
    assert one(kind, body) == expected


def test_what_is_unknown_names_type_and_place() -> None:
    with pytest.raises(errors.Unsupported, match=r"entry 9 of tag 3 \(journal object 5, offset 77\): event type 99"):
        one(99, b"")
    with pytest.raises(errors.Unsupported, match="namespace 7"):
        one(4, struct.pack("<Q", 4) + string("s") + frame(struct.pack("<I", 7)))
    with pytest.raises(errors.Unsupported, match="readable from 9 on"):
        decode(Raw(Place(0, 0, 0, 0), event(2, b"", 9, 9)))
    with pytest.raises(errors.Unsupported, match="older than 14"):
        decode(Raw(Place(0, 0, 0, 0), event(2, b"", 4)))


def test_later_fields_are_skipped() -> None:
    assert decode(Raw(Place(0, 0, 0, 0), event(2, b"whatever a newer Ceph adds", 6))).record == record.Flush()


@pytest.mark.parametrize("body", [struct.pack("<QQ", 8, 3) + string(b"ab"), struct.pack("<QQI", 8, 3, 1 << 30)])
def test_a_write_that_contradicts_itself(body: bytes) -> None:
    with pytest.raises(errors.Integrity, match="entry 9 of tag 3"):
        one(1, body)


def test_an_entry_larger_than_its_object() -> None:
    whole = packed(event(1, struct.pack("<QQ", 0, 4096) + string(bytes(4096))))
    assert len(entries(whole, largest=len(whole))) == 1
    with pytest.raises(errors.Integrity, match="more than an object holds"):
        entries(whole, largest=len(whole) - 1)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(0, 3000), st.integers(0, 1 << 20))
def test_padding_to_any_boundary_of_eight(sizes: list[int], cut: int, start: int) -> None:
    base = start * 8
    buffer = b""
    for number, zeroes in enumerate(sizes):
        buffer += packed(event(2, b""), number)
        buffer += bytes(zeroes + -(len(buffer) + zeroes) % 8)
    assert [e.place.entry_tid for e in entries(buffer, base=base)] == list(range(len(sizes)))
    # Read in two parts: the index to go on from is good for the rest.
    seen, at = [], 0
    for end in (min(cut, len(buffer)), len(buffer)):
        while True:
            raw, at = next_entry(buffer[:end], at, base, 0, LARGEST)
            if raw is None:
                break
            seen.append(raw.place.entry_tid)
    assert seen == list(range(len(sizes)))
    assert only_padding(buffer, at)


def test_padding_that_ends_anywhere_else_is_damage() -> None:
    with pytest.raises(errors.Integrity, match="boundary of 8"):
        entries(packed(event(2, b"")) + bytes(20) + packed(event(2, b"")))


@given(st.integers(0, 3), st.data())
def test_a_torn_tail_is_not_there_yet(number: int, data: Any) -> None:
    whole = bytes.fromhex(OBJECTS[number])
    end = data.draw(st.integers(0, len(whole)))
    complete = entries(whole, number)
    torn = entries(whole[:end], number)
    assert torn == complete[: len(torn)]
    assert sum(e.size for e in complete[: len(torn) + 1]) > end or torn == complete


@given(st.integers(0, 3), st.data())
def test_flipped_bytes_never_pass(number: int, data: Any) -> None:
    whole = bytearray.fromhex(OBJECTS[number])
    complete = entries(bytes(whole), number)
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    found, said = [], ""
    try:
        position = 0
        while True:
            raw, position = next_entry(bytes(whole), position, 0, number, LARGEST)
            if raw is None:
                break
            found.append(decode(raw))
    except errors.Integrity as error:
        said = str(error)
    assert not said or f"journal object {number} at offset" in said
    assert found == complete[: len(found)]
    assert sum(e.size for e in found) <= at


@given(st.binary(max_size=200))
def test_anything_at_all_is_an_entry_or_our_error(noise: bytes) -> None:
    for call in (decode_client, decode_tag, decode_clients, decode_tags, decode_positions, entries):
        try:
            call(noise)
        except (errors.Integrity, errors.Unsupported):
            continue


@given(st.sampled_from(golden()), st.data())
def test_a_payload_cut_short_or_changed_is_a_record_or_our_error(entry: Entry, data: Any) -> None:
    whole = bytes.fromhex(OBJECTS[entry.place.object_number])
    raw, _ = next_entry(whole, entry.place.offset, 0, entry.place.object_number, LARGEST)
    assert raw is not None
    payload = bytearray(raw.payload[: data.draw(st.integers(0, len(raw.payload)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    said = str(entry.place)
    try:
        decode(Raw(entry.place, bytes(payload)))
    except (errors.Integrity, errors.Unsupported) as error:
        said = str(error)
    assert str(entry.place) in said


u64 = st.integers(0, (1 << 64) - 1)
names = st.text(max_size=20).filter(lambda text: text.isascii())
commits = st.builds(Commit, u64, u64, u64)
clients = st.builds(Client, names, st.binary(max_size=30), st.lists(commits, max_size=5).map(tuple), st.booleans())
predecessors = st.one_of(st.none(), st.builds(Predecessor, names, u64, u64))


@given(st.lists(clients, max_size=4))
def test_clients_round_trip(made: list[Client]) -> None:
    raw = struct.pack("<I", len(made)) + b"".join(client.encode() for client in made)
    assert decode_clients(raw) == tuple(made)
    assert [decode_client(client.encode()) for client in made] == made


@given(st.lists(commits, max_size=6).map(tuple))
def test_positions_round_trip(positions: tuple[Commit, ...]) -> None:
    assert decode_positions(encode_positions(positions)) == positions


@given(u64, u64, names, predecessors)
def test_tags_round_trip(tag_tid: int, tag_class: int, uuid: str, predecessor: Predecessor | None) -> None:
    tag = Tag(tag_tid, tag_class, TagData(uuid, predecessor, predecessor.mirror_uuid if predecessor else "x"))
    found = decode_tag(tag.encode())
    assert (found.tag_tid, found.tag_class, found.data.mirror_uuid) == (tag_tid, tag_class, uuid)
    assert found.data.predecessor == predecessor
    assert decode_tags(struct.pack("<I", 1) + tag.encode()) == (found,)


def test_client_data_is_what_the_rbd_command_registers() -> None:
    assert CLIENT_DATA.hex() == "02010400000002000000"
