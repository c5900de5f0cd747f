"""Names, specs, sizes and generations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree import errors
from rbdtree.model.name import ImageSpec, NodeName, parse_size
from rbdtree.model.position import START, Position, parse_snapshot_name, snapshot_name


@pytest.mark.parametrize(
    ("text", "parts", "shown"),
    [
        ("a:vol", ("a", "rbd", "", "vol"), "a:rbd/vol"),
        ("a:pool/vol", ("a", "pool", "", "vol"), "a:pool/vol"),
        ("a:pool/ns/vol", ("a", "pool", "ns", "vol"), "a:pool/ns/vol"),
        ("site-1.x:p/a b", ("site-1.x", "p", "", "a b"), "site-1.x:p/a b"),
    ],
)
def test_image_specs(text: str, parts: tuple[str, ...], shown: str) -> None:
    spec = ImageSpec.parse(text)
    assert (spec.site, spec.pool, spec.namespace, spec.image) == parts
    assert str(spec) == shown
    assert ImageSpec.parse(shown) == spec


@pytest.mark.parametrize(
    "text", ["vol", "pool/vol", ":vol", "a:", "a:/vol", "a:p//v", "a:p/n/v/x", "a:v@snap", "-a:v", "a:v\n", ""]
)
def test_what_is_no_image_spec(text: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        ImageSpec.parse(text)
    assert repr(text) in str(caught.value) or repr(text.partition(":")[0]) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(("text", "tree", "node"), [("t", "t", ""), ("t/n", "t", "n"), ("T.1/n-2_x", "T.1", "n-2_x")])
def test_node_names(text: str, tree: str, node: str) -> None:
    assert NodeName.parse(text) == NodeName(tree, node)
    assert str(NodeName.parse(text)) == text


@pytest.mark.parametrize("text", ["", "/n", "t/", "t/n/x", ".t", "t n", "t" * 64, "t/é"])
def test_what_is_no_node_name(text: str) -> None:
    with pytest.raises(errors.UsageError):
        NodeName.parse(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0", 0),
        ("1K", 1024),
        ("64KiB", 65536),
        ("64kib", 65536),
        ("1.5G", 3 << 29),
        (" 10 G ", 10 << 30),
        ("2TB", 2 << 40),
        ("512b", 512),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1.5", "1e3", "0.3K", "1 2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(errors.UsageError):
        parse_size(text)


positions = st.builds(Position, st.integers(0, 99), st.integers(0, 10**6))


@given(positions, st.uuids().map(str))
def test_generations_and_their_snapshots_are_read_back(position: Position, tree_id: str) -> None:
    assert Position.parse(str(position)) == position
    assert parse_snapshot_name(snapshot_name(tree_id, position)) == (tree_id[:8], position)


def test_generations_are_ordered_by_epoch_first() -> None:
    assert START < Position(1, 1) < Position(1, 10) < Position(2, 1)


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "1.x", "-1.2", "1.2.3", "1,2"])
def test_what_is_no_generation(text: str) -> None:
    with pytest.raises(errors.UsageError):
        Position.parse(text)


@pytest.mark.parametrize(
    "name",
    [
        "mine",
        "rbdtree.1.2",
        "rbdtree.0123abcd.1",
        "rbdtree.0123ABCD.1.2",
        "rbdtree.0123abcd.1.2.3",
        "xrbdtree.0123abcd.1.2",
    ],
)
def test_snapshots_of_others_are_nobodys_generation(name: str) -> None:
    assert parse_snapshot_name(name) is None
