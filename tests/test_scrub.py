"""Scrubs and repairs over ``rbdtree.memory``: what is noted of what they find, and that it is mended."""

from dataclasses import replace
from typing import Any

import pytest
from manager.forest import Grove

from rbdtree import errors
from rbdtree.engine import forest, scrub, verify
from rbdtree.engine.sync import Sync
from rbdtree.model.document import Intent, Kind
from rbdtree.ports import Silent


def test_what_is_found_while_a_copy_begins_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy would take the distrust for its own, and end it."""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.write(0, b"one" * 1000)
    grove.cut()
    Sync(grove.sites).run(forest.look(grove.sites).tree("t"))
    node = grove.node("m")
    position = grove.document("m").newest_position
    assert position
    copying = Intent(position, position, 8 << 20, 0.0, "w", "")

    def compare(_source: Any, _image: Any, _mine: Any, _theirs: Any, verdict: verify.Verdict, *_: Any) -> None:
        verdict.differences.append(verify.Difference(0, ((0, 1),)))
        if begins:
            grove.node("m").update(lambda d: replace(d, intent=copying))

    monkeypatch.setattr(verify, "compare", compare)
    begins = True
    with pytest.raises(errors.Changed):
        scrub.scrub(grove.sites, node, 1 << 20, Silent())
    found = grove.document("m")
    assert (found.distrust, found.scrub) == ("", None)
    assert scrub.scrub(grove.sites, node, 1 << 20, Silent()) is None
    grove.node("m").update(lambda d: replace(d, intent=None))
    begins = False
    with pytest.raises(errors.Integrity):
        scrub.scrub(grove.sites, node, 1 << 20, Silent())
    assert "a scrub found 1 object unlike t/root" in grove.document("m").distrust
