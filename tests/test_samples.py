"""The sample configurations of docs/samples: good ones load, bad ones say what is wrong."""

from pathlib import Path

import pytest

from rbdtree import config, errors

SAMPLES = Path(__file__).parents[1] / "docs" / "samples"
EXPECTED = "# expected: "
VALID = sorted(SAMPLES.glob("*.toml"))
INVALID = sorted((SAMPLES / "invalid").glob("*.toml"))


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_valid_sample_loads(path: Path) -> None:
    loaded = config.load(path)
    assert loaded.sites
    for site in loaded.sites.values():
        assert site.client.startswith("client.")
        assert site.conf.is_absolute()


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_sample_is_refused_with_its_mistakes_named(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(EXPECTED), "the first line says what the message must contain"
    with pytest.raises(errors.UsageError) as caught:
        config.load(path)
    for mistake in first.removeprefix(EXPECTED).split("; "):
        assert mistake in str(caught.value)


def test_there_are_samples() -> None:
    assert len(VALID) >= 3
    assert len(INVALID) >= 8


def test_the_three_sites_mean_what_the_comments_say() -> None:
    loaded = config.load(SAMPLES / "three-sites.toml")
    assert loaded.sites["berlin"].client == loaded.sites["paris"].client == "client.rbdtree"
    assert loaded.sites["rome"].conf == SAMPLES / "rome.conf"
    assert loaded.trash_expiry_seconds == 7 * 86400
