"""Settings in text, and what is in force at a node."""

from dataclasses import replace

import pytest

from rbdtree import errors
from rbdtree.model import policy
from rbdtree.model.policy import Keep, Policy
from rbdtree.model.schedule import Bandwidth, Schedule


def test_a_nodes_own_settings_come_first() -> None:
    tree = policy.settings({"rpo": "15m", "keep": "last 5,  daily 7", "scrub": "7d"})
    own = policy.settings({"rpo": "1h", "scrub": "off"})
    found = policy.effective(own, tree)
    assert found == Policy(rpo=3600.0, keep=Keep(last=5, daily=7))
    assert policy.effective((), ()) == Policy()


def test_all_settings_together() -> None:
    found = policy.effective(
        policy.settings(
            {
                "schedule": "5m; 1d 03:30",
                "bandwidth": "08:00 20M; 18:00 off",
                "parallel": "2",
                "priority": "-3",
                "max_pinned_age": "3d",
                "max_pinned_bytes": "100G",
                "uplink": "journal",
                "push": "30s",
                "scrub_rate": "20M",
                "cut_through": "off",
            }
        ),
        (),
    )
    assert found == Policy(
        schedule=(Schedule(300.0), Schedule(86400.0, 12600.0)),
        bandwidth=Bandwidth.parse("08:00 20M; 18:00 off"),
        parallel=2,
        priority=-3,
        max_pinned_age=259200.0,
        max_pinned_bytes=100 << 30,
        uplink="journal",
        push=30.0,
        scrub_rate=20 << 20,
        cut_through=False,
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("speed", "1"),
        ("rpo", "soon"),
        ("rpo", "0m"),
        ("rpo", ""),
        ("keep", "5"),
        ("keep", "last 5, last 6"),
        ("keep", "last 0"),
        ("keep", "yearly 2"),
        ("parallel", "0"),
        ("parallel", "off"),
        ("uplink", "both"),
        ("max_pinned_bytes", "0"),
        ("cut_through", "yes"),
        ("schedule", "now"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_with_its_key(key: str, text: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        policy.check(key, text)
    assert key in str(caught.value)


def test_settings_of_a_newer_version_are_left_alone() -> None:
    assert policy.effective((("colour", "red"), ("rpo", "1 fortnight")), (("priority", "2"),)) == Policy(priority=2)


def test_the_defaults_in_text_are_the_defaults() -> None:
    assert tuple(policy.DEFAULTS) == policy.KEYS
    found = policy.effective(policy.settings(policy.DEFAULTS), ())
    assert found.bandwidth.at(0.0) is None
    assert replace(found, bandwidth=Bandwidth()) == Policy()
