"""The engine against a model that knows what every node has to hold."""

import pytest

pytest.register_assert_rewrite("machine.trees", "machine.stories", "machine.relays")
