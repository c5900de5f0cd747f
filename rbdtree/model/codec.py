"""Node documents as JSON text; ``docs/design.md`` shows one. Newer formats are refused, older ones migrated."""

import json
from functools import lru_cache
from typing import Any

from rbdtree import errors
from rbdtree.model.document import (
    Branch,
    Child,
    Evidence,
    Hold,
    Intent,
    Kind,
    Lease,
    NodeDocument,
    NodeRef,
    Push,
    PushState,
    Resync,
    Scrub,
    State,
    Summary,
    Trouble,
)
from rbdtree.model.extent import Pair
from rbdtree.model.policy import Settings
from rbdtree.model.position import Generation, Position

FORMAT = 4
"""1 had no branches, pushes and leases, 2 no policies, 3 knew neither of lost leases nor of who else wrote. An older
rbdtree refuses a newer format: it would write back what it knows."""


def encode(document: NodeDocument) -> str:
    """JSON text, keys sorted, so that equal documents are equal texts."""
    return json.dumps({"format": FORMAT, **_plain(document)}, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=16)
def decode(text: str, where: str) -> NodeDocument:
    """The document in ``text``; ``where`` names its object in messages. It is looked at far more often than it changes.

    Raises ``Unsupported`` for a newer format and ``Diverged`` for text that is no document.
    """
    try:
        raw = json.loads(text)
        if raw["format"] > FORMAT:
            raise errors.Unsupported(
                f"{where} has document format {raw['format']}, this rbdtree knows {FORMAT}",
                "Upgrade rbdtree on this host.",
            )
        return _document(_migrated(raw) if raw["format"] < FORMAT else raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.Diverged(
            f"{where} does not hold a node document ({type(error).__name__}: {error})",
            "Restore the object, or list what is left with 'rbdtree marks'.",
        ) from error


def _migrated(raw: dict[str, Any]) -> dict[str, Any]:
    """An older document as one of this format."""
    added: dict[str, Any] = {
        "policy": [],
        "tree_policy": [],
        "trouble": None,
        "scrub": None,
        "begun": 0.0,
        "resyncs": [],
        "portion": [],
        "branch": None,
        "push_number": 0,
        "pushes": [],
        "landed": [],
        "discarding": [],
    }
    return {
        **added,
        **raw,
        "leases": [{"lost": None, **lease} for lease in raw.get("leases", [])],
        "generations": [
            {"author": "", "push": "", "exact": False, "others": [], "portion": [], **g} for g in raw["generations"]
        ],
        "holds": [{"branch": False, **h} for h in raw["holds"]],
        "intent": {"push": "", "moved": 0.0, "relayed": 0.0, "portion": [], **raw["intent"]} if raw["intent"] else None,
    }


@lru_cache(maxsize=1 << 13)
def _plain_generation(generation: Generation) -> dict[str, Any]:
    """There may be thousands, of which one is new."""
    return {name: _plain(getattr(generation, name)) for name in generation.__slots__}


def _plain(value: Any) -> Any:
    if isinstance(value, Generation):
        return _plain_generation(value)
    if isinstance(value, Position):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__slots__") and not isinstance(value, str):
        return {name: _plain(getattr(value, name)) for name in value.__slots__}
    return value


def _position(raw: str | None) -> Position | None:
    return None if raw is None else Position.parse(raw)


def _child(raw: dict[str, Any]) -> Child:
    summary = raw["summary"]
    return Child(raw["edge"], Kind(raw["kind"]), NodeRef(**raw["ref"]), _summary(summary) if summary else None)


def _summary(raw: dict[str, Any]) -> Summary:
    children = tuple(_child(child) for child in raw["children"])
    return Summary(
        State(raw["state"]),
        _position(raw["position"]),
        raw["size_bytes"],
        children,
        raw.get("trouble", ""),
        raw.get("told", 0.0),
        _pairs(raw.get("portion", [])),
    )


def _generation(raw: dict[str, Any]) -> Generation:
    pairs = {"portion": _pairs(raw["portion"]), "others": _pairs(raw["others"])}
    return Generation(**{**raw, "position": Position.parse(raw["position"]), **pairs})


def _lease(raw: dict[str, Any]) -> Lease:
    return Lease(**{**raw, "extents": _pairs(raw["extents"]), "lost": _position(raw["lost"])})


def _hold(raw: dict[str, Any]) -> Hold:
    return Hold(raw["owner"], Position.parse(raw["position"]), raw["reason"], raw["branch"])


def _resync(raw: dict[str, Any]) -> Resync:
    return Resync(**{**raw, "position": Position.parse(raw["position"])})


def _intent(raw: dict[str, Any]) -> Intent:
    return Intent(
        **{
            **raw,
            "target": Position.parse(raw["target"]),
            "since": _position(raw["since"]),
            "portion": _pairs(raw["portion"]),
        },
    )


def _pairs(raw: list[list[int]]) -> tuple[Pair, ...]:
    return tuple((offset, length) for offset, length in raw)


def _settings(raw: list[list[str]]) -> Settings:
    return tuple((key, text) for key, text in raw)


def _branch(raw: dict[str, Any]) -> Branch:
    taken = tuple((number, tag, entry) for number, tag, entry in raw["taken"])
    return Branch(**{**raw, "base": Position.parse(raw["base"]), "taken": taken, "doubt": _pairs(raw.get("doubt", []))})


def _push(raw: dict[str, Any]) -> Push:
    evidence = tuple(
        Evidence(**{**e, "position": _position(e["position"]), "extents": _pairs(e["extents"])})
        for e in raw["evidence"]
    )
    return Push(
        **{
            **raw,
            "base": Position.parse(raw["base"]),
            "state": PushState(raw["state"]),
            "position": _position(raw["position"]),
            "extents": _pairs(raw["extents"]),
            "evidence": evidence,
        }
    )


def _document(raw: dict[str, Any]) -> NodeDocument:
    return NodeDocument(
        tree_id=raw["tree_id"],
        tree=raw["tree"],
        kind=Kind(raw["kind"]),
        ref=NodeRef(**raw["ref"]),
        image_id=raw["image_id"],
        replica=NodeRef(**raw["replica"]),
        parent=NodeRef(**raw["parent"]) if raw["parent"] else None,
        edge=raw["edge"],
        epoch=raw["epoch"],
        last_sequence=raw["last_sequence"],
        history=raw["history"],
        distrust=raw["distrust"],
        generations=tuple(_generation(g) for g in raw["generations"]),
        holds=tuple(_hold(h) for h in raw["holds"]),
        children=tuple(_child(c) for c in raw["children"]),
        intent=_intent(raw["intent"]) if raw["intent"] else None,
        phase=raw["phase"],
        branch=_branch(raw["branch"]) if raw["branch"] else None,
        push_number=raw["push_number"],
        pushes=tuple(_push(p) for p in raw["pushes"]),
        landed=tuple((owner, number) for owner, number in raw["landed"]),
        leases=tuple(map(_lease, raw["leases"])),
        discarding=tuple((image_id, name) for image_id, name in raw["discarding"]),
        policy=_settings(raw["policy"]),
        tree_policy=_settings(raw["tree_policy"]),
        trouble=Trouble(**raw["trouble"]) if raw["trouble"] else None,
        scrub=Scrub(**raw["scrub"]) if raw["scrub"] else None,
        begun=raw["begun"],
        resyncs=tuple(_resync(r) for r in raw["resyncs"]),
        portion=_pairs(raw["portion"]),
    )
