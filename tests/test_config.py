"""The configuration file: what it may say, and every mistake of it at once."""

from pathlib import Path

import pytest

from rbdtree import config, errors
from rbdtree.model.schedule import parse_duration


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "rbdtree.toml"
    path.write_text(text)
    return config.load(path)


def test_a_site_has_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, '[sites.a]\nconf = "/etc/ceph/a.conf"\n')
    assert found.sites == {"a": config.Site("a", Path("/etc/ceph/a.conf"))}
    assert found.sites["a"].client == "client.admin"
    assert found.trash_expiry_seconds == 86400
    assert found.path == tmp_path / "rbdtree.toml"


def test_a_site_says_everything(tmp_path: Path) -> None:
    text = """
        [sites.a]
        conf = "conf/a.conf"
        id = "tree"
        keyring = "a.keyring"
        pools = ["rbd", "rbd/tenant"]
        [sites.b]
        conf = "/etc/ceph/b.conf"
        name = "client.other"
        [trash]
        expiry = "7d"
    """
    found = load(tmp_path, text)
    a = config.Site("a", tmp_path / "conf/a.conf", "client.tree", tmp_path / "a.keyring", ("rbd", "rbd/tenant"))
    assert found.sites == {"a": a, "b": config.Site("b", Path("/etc/ceph/b.conf"), "client.other")}
    assert found.trash_expiry_seconds == 7 * 86400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sites.a]\n", ["sites.a.conf"]),
        ("", ["sites"]),
        ('[sites.a]\nconf = "x"\nkeyrnig = "y"\n', ["sites.a.keyrnig"]),
        ('[sites.a]\nconf = 1\n[sites.b]\nid = "x"\n', ["sites.a.conf", "sites.b.conf"]),
        ('[sites.a]\nconf = "x"\nid = "y"\nname = "client.y"\n', ["'id' or 'name', not both"]),
        ('[sites.a]\nconf = "x"\nname = "y"\n', ["full name"]),
        ('[sites."a b"]\nconf = "x"\n', ["'a b' is not a site name"]),
        ('[sites.a]\nconf = "x"\n[trash]\nexpiry = "soon"\n', ["'soon' is not a duration"]),
        ("[sites.a\n", ["is not TOML"]),
    ],
    ids=[
        "no conf",
        "no sites",
        "an unknown key",
        "two mistakes, both told",
        "id and name",
        "a name without a type",
        "a site name with a blank",
        "a duration in words",
        "half a file",
    ],
)
def test_mistakes(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(errors.UsageError) as caught:
        load(tmp_path, text)
    for words in said:
        assert words in str(caught.value)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound) as caught:
        config.load(tmp_path / "none.toml")
    assert "none.toml" in str(caught.value)
    assert caught.value.hint


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(config.VARIABLE, raising=False)
    mine = tmp_path / ".config/rbdtree/rbdtree.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("")
    assert config.find(None) == mine
    monkeypatch.setenv(config.VARIABLE, "/of/the/environment")
    assert config.find(None) == Path("/of/the/environment")
    assert config.find("~/given") == tmp_path / "given"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("90s", 90), ("15m", 900), ("12h", 43200), ("7d", 604800), ("2w", 1209600)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 days", "-1h", "1.5h", "h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(errors.UsageError, match="is not a duration"):
        parse_duration(text)
