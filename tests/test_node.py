"""A document that many threads change at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from manager.forest import Grove

from rbdtree import errors, memory
from rbdtree.model.document import NodeDocument


def test_a_hundred_threads_change_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them gives up, nor meets another."""
    grove = Grove()
    met: list[str] = []
    swap = memory.Pool.swap_document

    def count(self: memory.Pool, name: str, *words: Any) -> None:
        try:
            swap(self, name, *words)
        except errors.Changed:
            met.append(name)
            raise

    def add(d: NodeDocument) -> NodeDocument:
        time.sleep(0.002)
        return replace(d, last_sequence=d.last_sequence + 1)

    before = grove.document("root").last_sequence
    nodes = [grove.node("root") for _ in range(100)]
    monkeypatch.setattr(memory.Pool, "swap_document", count)
    with ThreadPoolExecutor(100) as threads:
        list(threads.map(lambda node: node.update(add), nodes))
    assert grove.document("root").last_sequence == before + 100
    assert not met
