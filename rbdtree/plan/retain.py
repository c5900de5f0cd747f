"""Which generations of a node stay, and why: keep rules, holds, and what slower nodes below stand on.

    1.1     1.4     1.7  1.8  1.9         daily 2, last 2
     |       |            |    newest, last 2, newest of its day
     |       |            last 2
     |       base of vol/b, for 2 h
     base of vol/a, for 4 d: longer than max_pinned_age, so it goes, and vol/a needs a resync

A generation goes when no rule keeps it and nobody needs it; or when those who need it are slow nodes only, and all of
them over the limits. What a branch, a push, a clone or a person holds stays in any case, and so does the newest.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from rbdtree.model.name import format_duration
from rbdtree.model.policy import Keep
from rbdtree.model.position import Generation, Position

_HOUR, _DAY = 3600, 86400
_ALL = Keep()


@dataclass(frozen=True, slots=True)
class Need:
    """Somebody needs a generation. ``edge`` is empty for what no limit ends.

    ``held``: a child fed from here stands on it and would need a resync without it. ``then``: what comes of it when a
    limit ends the need, in words.
    """

    position: Position
    reason: str
    name: str = ""
    edge: str = ""
    held: bool = False
    then: str = ""


@dataclass(frozen=True, slots=True)
class Stock:
    """A node's generations, ascending, and who needs which.

    ``pinned_bytes``: what a generation takes that only slow nodes keep; where it is not known it takes nothing.
    """

    generations: tuple[Generation, ...]
    keep: Keep = _ALL
    needs: tuple[Need, ...] = ()
    max_pinned_age: float | None = None
    max_pinned_bytes: int | None = None
    pinned_bytes: Mapping[Position, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One generation: whether it goes, why (or why not), and whose needs are not met then. ``pinned``: only slow nodes
    keep it."""

    generation: Generation
    goes: bool
    why: tuple[str, ...]
    lapsed: tuple[tuple[Need, str], ...] = ()
    pinned: bool = False

    @property
    def position(self) -> Position:
        return self.generation.position


def plan_retain(stock: Stock, now: float) -> tuple[Verdict, ...]:
    """A verdict a generation, in their order."""
    kept = _kept(stock)
    pins = {
        g.position: tuple(n for n in stock.needs if n.position == g.position)
        for g in stock.generations
        if not kept[g.position]
    }
    since = _pinned_since(stock.generations)
    over = {
        position: _too_old(now - since[position], stock.max_pinned_age) for position, needs in pins.items() if needs
    }
    _over_bytes(stock, over)
    found = []
    for generation in stock.generations:
        position = generation.position
        if kept[position]:
            more = [n.reason for n in stock.needs if n.position == position and n.edge]
            found.append(Verdict(generation, False, (*kept[position], *more)))
            continue
        needs = pins[position]
        if not needs:
            found.append(Verdict(generation, True, ("no rule keeps it and nobody holds it",)))
        elif over[position]:
            lapsed = tuple((n, over[position]) for n in needs)
            found.append(Verdict(generation, True, tuple(_lapse(n, over[position]) for n in needs), lapsed, True))
        else:
            length = in_words(now - since[position])
            found.append(Verdict(generation, False, tuple(f"{n.reason}, for {length}" for n in needs), pinned=True))
    return tuple(found)


def _kept(stock: Stock) -> dict[Position, tuple[str, ...]]:
    """Why each generation stays whatever slow nodes need."""
    why: dict[Position, list[str]] = {g.position: [] for g in stock.generations}
    if stock.generations:
        why[stock.generations[-1].position].append("newest")
    for position, rule in kept_by_rules(stock.generations, stock.keep):
        why[position].append(rule)
    for need in stock.needs:
        if not need.edge and need.position in why:
            why[need.position].append(need.reason)
    return {position: tuple(reasons) for position, reasons in why.items()}


def kept_by_rules(generations: Iterable[Generation], keep: Keep) -> list[tuple[Position, str]]:
    """(position, rule) for each rule that spares it. Hours, days, weeks (from Monday) and months are UTC's; those
    without any generation do not count."""
    newest_first = sorted(generations, key=lambda g: g.position, reverse=True)
    if keep.all:
        return [(g.position, "keep all") for g in newest_first]
    found = [(g.position, f"last {keep.last}") for g in newest_first[: keep.last]]
    rules: tuple[tuple[int, str, Callable[[float], object]], ...] = (
        (keep.hourly, "newest of its hour", lambda at: at // _HOUR),
        (keep.daily, "newest of its day", lambda at: at // _DAY),
        # 1970-01-01 was a Thursday.
        (keep.weekly, "newest of its week", lambda at: (at // _DAY + 3) // 7),
        (keep.monthly, "newest of its month", lambda at: month(int(at // _DAY))),
    )
    for count, rule, bucket in rules:
        seen: set[object] = set()
        for generation in newest_first:
            which = bucket(generation.created)
            if len(seen) < count and which not in seen:
                seen.add(which)
                found.append((generation.position, rule))
    return found


def month(day: int) -> tuple[int, int]:
    """(year, month) of a day counted from 1970-01-01, in the Gregorian calendar."""
    # Years from March on, so that the leap day is the last one; eras of 400 years.
    day += 719468
    era, of_era = divmod(day, 146097)
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    march = (5 * of_year + 2) // 153
    found = march + 3 if march < 10 else march - 9
    return year + era * 400 + (found <= 2), found


def _pinned_since(generations: tuple[Generation, ...]) -> dict[Position, float]:
    """When each generation ceased to be the newest here: before that, who stands on it is not slow."""
    found = {}
    for number, generation in enumerate(generations):
        after = generations[number + 1] if number + 1 < len(generations) else None
        followed = [generation.followed] if generation.followed else []
        followed += [after.arrived or after.created] if after else []
        found[generation.position] = min(followed, default=float("inf"))
    return found


def _too_old(age: float, limit: float | None) -> str:
    if limit is None or age <= limit:
        return ""
    return f"pinned for {in_words(age)}, max_pinned_age is {format_duration(limit)}"


def _over_bytes(stock: Stock, over: dict[Position, str]) -> None:
    """What is pinned in all is brought below the limit: the oldest goes first."""
    limit = stock.max_pinned_bytes
    left = {position: stock.pinned_bytes.get(position, 0) for position, why in over.items() if not why}
    total = sum(left.values())
    for position in sorted(left):
        if limit is None or total <= limit:
            return
        if left[position]:
            over[position] = f"{total} bytes are pinned, max_pinned_bytes is {limit}"
            total -= left[position]


def _lapse(need: Need, why: str) -> str:
    then = f"{need.name} needs a resync then" if need.held else need.then
    return f"{need.reason} no more ({why}): {then}"


def in_words(seconds: float) -> str:
    """A length of time, for people."""
    for unit, length in (("d", _DAY), ("h", _HOUR), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def writer(generation: Generation) -> str:
    """The node whose pushes, and nothing else, lie between a generation and the one before; the push where it is known
    what else does; empty for anything else."""
    if generation.others:
        return generation.push
    return generation.push.partition(":")[0] if generation.exact else ""


def struck(generations: tuple[Generation, ...], gone: frozenset[Position]) -> tuple[Generation, ...]:
    """What is left, with what it has to know of those that were in between: since when it is not the newest, what
    changed since the one before that is left, whether it was one node's pushes that did, and whether one of them was
    written to late."""
    since = _pinned_since(generations)
    found: list[Generation] = []
    between: list[Generation] = []
    for generation in generations:
        if generation.position in gone:
            between.append(generation)
            continue
        if between:
            if found:
                before = found[-1]
                found[-1] = replace(before, followed=since[before.position])
            deltas = [g.delta_bytes for g in (*between, generation)]
            known = [delta for delta in deltas if delta is not None]
            alone = bool(found) and {writer(g) for g in between} == {writer(generation)}
            total = sum(known) if found and len(known) == len(deltas) else None
            late = generation.late or any(g.late for g in between)
            found.append(replace(generation, delta_bytes=total, exact=alone and generation.exact, others=(), late=late))
            between = []
        else:
            found.append(generation)
    return tuple(found)
