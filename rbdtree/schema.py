"""The shape of the TOML files, checked by pydantic; converted at once into values of ``config`` and ``declaration``.

Apart from these so that only a command that reads a file pays for the import.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rbdtree import errors
from rbdtree.model.name import NodeName, parse_size
from rbdtree.model.schedule import parse_duration

_WORDS = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "too_short": "there is none",
    "string_type": "should be a string",
    "bool_type": "should be true or false",
    "int_type": "should be a number",
    "list_type": "should be a list",
    "dict_type": "should be a table",
    "model_type": "should be a table",
}
"""Of pydantic's mistakes, where its own are about Python."""
_PLACE = re.compile(r"[^/@\s]+(/[^/@\s]+)?")


def mistakes_of(error: ValidationError) -> list[str]:
    """Each as ``where: what``."""
    return [
        f"{'.'.join(str(part) for part in mistake['loc']) or 'file'}: "
        + _WORDS.get(mistake["type"], mistake["msg"].removeprefix("Value error, "))
        for mistake in error.errors()
    ]


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except errors.UsageError as error:
        raise ValueError(f"{error}. {error.hint}") from error
    return text


def _size(text: str) -> str:
    try:
        parse_size(text)
    except errors.UsageError as error:
        raise ValueError(f"{error}. {error.hint}") from error
    return text


def _node(text: str) -> str:
    try:
        NodeName.parse(text)
    except errors.UsageError as error:
        raise ValueError(f"{error}. {error.hint}") from error
    return text


def _place(text: str) -> str:
    if not _PLACE.fullmatch(text):
        raise ValueError(f"{text!r} is neither POOL nor POOL/NAMESPACE")
    return text


def _client(text: str) -> str:
    if not text.startswith("client."):
        raise ValueError("'name' is the full name, such as client.rbdtree ('id' is the part after the dot)")
    return text


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class SiteSection(_Strict):
    """``[sites.NAME]``"""

    conf: str
    id: str | None = None
    name: Annotated[str, AfterValidator(_client)] | None = None
    keyring: str | None = None
    pools: list[Annotated[str, AfterValidator(_place)]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_client(self) -> "SiteSection":
        if self.id and self.name:
            raise ValueError("give 'id' or 'name', not both")
        return self


class TrashSection(_Strict):
    """``[trash]``"""

    expiry: Annotated[str, AfterValidator(_duration)] = "1d"

    def expiry_seconds(self) -> float:
        return parse_duration(self.expiry)


class HostSection(_Strict):
    """``[host]``"""

    cache: Annotated[str, AfterValidator(_size)] | None = None
    volumes: int = Field(default=4, ge=1, le=10_000)
    weights: dict[Annotated[str, AfterValidator(_node)], Annotated[float, Field(gt=0, strict=False)]] = Field(
        default_factory=dict
    )
    freeze_limit: Annotated[str, AfterValidator(_duration)] = "10s"

    def cache_bytes(self) -> int | None:
        return parse_size(self.cache) if self.cache is not None else None

    def freeze_seconds(self) -> float:
        return parse_duration(self.freeze_limit)


class File(_Strict):
    """The whole file."""

    sites: dict[str, SiteSection] = Field(min_length=1)
    trash: TrashSection = TrashSection()
    host: HostSection = HostSection()


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int):
        return str(value)
    raise ValueError("should be a string, a number, true or false")


class NodeSection(_Strict):
    """``[nodes.NAME]`` of a tree's file"""

    kind: Literal["root", "mirror", "clone"]
    image: str
    parent: str = ""
    history: bool = False
    portion: str | None = None
    size: str | None = None
    object_size: str | None = None
    stripe_unit: str | None = None
    stripe_count: int | None = None
    data_pool: str | None = None
    policy: dict[str, Annotated[str, BeforeValidator(_setting)]] = Field(default_factory=dict)


class TreeFile(_Strict):
    """A tree's file."""

    tree: str
    policy: dict[str, Annotated[str, BeforeValidator(_setting)]] = Field(default_factory=dict)
    nodes: dict[str, NodeSection] = Field(min_length=1)
