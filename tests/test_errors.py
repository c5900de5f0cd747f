"""Exit codes: one each, each with a meaning, and the page in docs that lists them."""

import errno
from pathlib import Path

from rbdtree import errors

PAGE = Path(__file__).parents[1] / "docs/exit-codes.md"


def classes() -> list[type[errors.Error]]:
    return [errors.Error, *errors.all_classes()]


def test_no_two_errors_share_an_exit_code() -> None:
    own = [c for c in classes() if c is not errors.CephError]
    codes = [c.exit_code for c in own]
    assert len(set(codes)) == len(codes), sorted(codes)
    assert errors.CephError.exit_code == errors.Error.exit_code
    assert all(0 < code < 256 for code in codes)


def test_every_error_says_what_it_means() -> None:
    for c in classes():
        assert c.meaning
        assert c.meaning[0].islower() or c.meaning.startswith("Ceph"), c.meaning
        assert not c.meaning.endswith("."), c.meaning
        assert c.__doc__, c


def test_a_message_and_its_hint_are_kept() -> None:
    error = errors.Busy("somebody is at work", "Wait.")
    assert (str(error), error.message, error.hint) == ("somebody is at work", "somebody is at work", "Wait.")
    assert errors.Busy("x").hint is None


def table() -> str:
    """The table of the page, from the classes."""
    found = {c.exit_code: c.meaning for c in reversed(classes())}
    names = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP", errors.Bug.exit_code: "-", 130: "-"}
    rows = [(code, names[code], found[code]) for code in sorted(found)]
    lines = ["| code | errno | meaning |", "|---|---|---|", *(f"| {c} | {name} | {text} |" for c, name, text in rows)]
    return "\n".join(lines)


def test_the_page_lists_them() -> None:
    assert table() in PAGE.read_text(), f"docs/exit-codes.md should have:\n{table()}"
