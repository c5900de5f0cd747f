"""The node document: what is written is read, the rest is refused."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree import errors
from rbdtree.model.codec import FORMAT, decode, encode
from rbdtree.model.document import (
    Child,
    Hold,
    Intent,
    Kind,
    Lease,
    NodeDocument,
    NodeRef,
    State,
    Summary,
)
from rbdtree.model.position import START, Generation, Position

words = st.text(max_size=8)
numbers = st.integers(0, 2**50)
times = st.floats(0, 2e9)
positions = st.builds(Position, st.integers(0, 9), st.integers(0, 999))
refs = st.builds(NodeRef, words, words, words, words, words, words, words)
kinds, states = st.sampled_from(Kind), st.sampled_from(State)
ranges = st.lists(st.tuples(numbers, numbers), max_size=3).map(tuple)
generations = st.builds(
    Generation, positions, numbers, numbers, times, st.none() | numbers, others=ranges, portion=ranges
)
leases = st.builds(Lease, words, words, ranges, numbers, times, st.none() | positions)
leaves = st.builds(Child, words, kinds, refs, st.none())
summaries = st.builds(Summary, states, st.none() | positions, numbers, st.lists(leaves, max_size=2).map(tuple))
children = st.builds(Child, words, kinds, refs, st.none() | summaries)
intents = st.builds(Intent, positions, st.none() | positions, numbers, times, words, words, numbers, words)
documents = st.builds(
    NodeDocument,
    tree_id=words,
    tree=words,
    kind=kinds,
    ref=refs,
    image_id=words,
    replica=refs,
    parent=st.none() | refs,
    edge=words,
    epoch=numbers,
    last_sequence=numbers,
    history=st.booleans(),
    distrust=words,
    generations=st.lists(generations, max_size=3).map(tuple),
    holds=st.lists(st.builds(Hold, words, positions, words), max_size=3).map(tuple),
    children=st.lists(children, max_size=3).map(tuple),
    intent=st.none() | intents,
    phase=words,
    leases=st.lists(leases, max_size=3).map(tuple),
)

REF = NodeRef("1", "n", "a", "f", "rbd", "", "vol")
PLAIN = NodeDocument("0123abcd", "t", Kind.ROOT, REF, "12", REF)


@given(documents)
def test_what_is_written_is_read(document: NodeDocument) -> None:
    text = encode(document)
    assert decode(text, "x") == document
    assert encode(decode(text, "x")) == text


def test_every_field_is_written() -> None:
    assert set(json.loads(encode(PLAIN))) == {field.name for field in fields(NodeDocument)} | {"format"}


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(errors.Unsupported) as caught:
        decode(json.dumps({"format": 99, "news": "unheard of"}), "a:rbd/rbdtree.node.1")
    assert "a:rbd/rbdtree.node.1 has document format 99" in str(caught.value)


def test_an_older_document_is_read() -> None:
    """As rbdtree wrote it before there were branches."""
    text = (
        '{"children":[],"distrust":"","edge":"e","epoch":1,"format":1,'
        '"generations":[{"created":1.5,"delta_bytes":null,"position":"1.1","size_bytes":4096,"snapshot_id":4}],'
        '"history":false,"holds":[{"owner":"f","position":"1.1","reason":"base of t/x"}],"image_id":"12ab",'
        '"intent":{"client":"","done_bytes":512,"image_id":"","since":"1.1","size_bytes":4096,"started":2.5,'
        '"target":"1.2","worker":"w"},"kind":"mirror","last_sequence":0,"parent":null,"phase":"",'
        '"ref":{"fsid":"f","image":"vol","name":"n","namespace":"","node_id":"1","pool":"rbd","site":"a"},'
        '"replica":{"fsid":"f","image":"vol","name":"n","namespace":"","node_id":"1","pool":"rbd","site":"a"},'
        '"tree":"t","tree_id":"0123abcd"}'
    )
    document = decode(text, "x")
    assert document == NodeDocument(
        "0123abcd",
        "t",
        Kind.MIRROR,
        REF,
        "12ab",
        REF,
        edge="e",
        generations=(Generation(at(1), 4, 4096, 1.5),),
        holds=(Hold("f", at(1), "base of t/x"),),
        intent=Intent(at(2), at(1), 4096, 2.5, "w", "", 512),
    )
    assert json.loads(encode(document))["format"] == FORMAT
    assert decode(encode(document), "x") == document


def test_what_the_format_before_wrote_is_read() -> None:
    document = replace(
        PLAIN,
        generations=(Generation(at(1), 4, 4096, 1.5),),
        leases=(Lease("1", "n", ((0, 4096),), 1, 2.5),),
    )
    raw = json.loads(encode(document))
    del raw["generations"][0]["others"], raw["leases"][0]["lost"]
    assert decode(json.dumps({**raw, "format": 3}), "x") == document


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": "1"}', '"x"', "7"],
    ids=[
        "nothing",
        "half of it",
        "a list",
        "null",
        "no format",
        "no fields",
        "a format that is text",
        "text",
        "a number",
    ],
)
def test_what_is_no_document(text: str) -> None:
    with pytest.raises(errors.Diverged) as caught:
        decode(text, "a:rbd/x")
    assert "a:rbd/x" in str(caught.value)


@pytest.mark.parametrize("field", [field.name for field in fields(NodeDocument)])
def test_a_document_without_one_of_its_fields_is_refused(field: str) -> None:
    raw = json.loads(encode(PLAIN))
    del raw[field]
    with pytest.raises(errors.Diverged):
        decode(json.dumps(raw), "x")


def at(sequence: int) -> Position:
    return Position(1, sequence)


def generation(sequence: int, snapshot_id: int = 0) -> Generation:
    return Generation(at(sequence), snapshot_id or sequence, 4096, 0.0)


def test_generations_stay_sorted_and_single() -> None:
    document = PLAIN.with_generation(generation(3)).with_generation(generation(1)).with_generation(generation(3, 7))
    assert [g.position for g in document.generations] == [at(1), at(3)]
    assert document.newest == generation(3, 7)
    assert document.position == at(3)
    assert document.generation(at(2)) is None
    assert (PLAIN.position, PLAIN.newest) == (START, None)


def test_holds_are_one_a_position_and_owner() -> None:
    document = (
        PLAIN.with_hold(Hold("e", at(1), "old")).with_hold(Hold("e", at(2), "x")).with_hold(Hold("f", at(1), "y"))
    )
    document = document.with_hold(Hold("e", at(1), "new"))
    assert {(h.owner, h.position, h.reason) for h in document.holds} == {
        ("e", at(1), "new"),
        ("e", at(2), "x"),
        ("f", at(1), "y"),
    }
    assert {(h.owner, h.position) for h in document.without_holds("e", at(1)).holds} == {("e", at(2)), ("f", at(1))}
    assert {h.owner for h in document.without_holds("e").holds} == {"f"}


def test_an_image_spec_has_no_empty_parts() -> None:
    assert REF.image_spec == "a:rbd/vol"
    assert replace(REF, namespace="ns").image_spec == "a:rbd/ns/vol"
