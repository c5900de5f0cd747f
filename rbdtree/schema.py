"""The shape of the TOML file, checked by pydantic; converted at once into ``config``'s values.

Apart from ``config`` so that only a command that reads a file pays for the import.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rbdtree import errors
from rbdtree.model.schedule import parse_duration

_PLACE = re.compile(r"[^/@\s]+(/[^/@\s]+)?")


def _duration(text: str) -> str:
    try:
        parse_duration(text)
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


class File(_Strict):
    """The whole file."""

    sites: dict[str, SiteSection] = Field(min_length=1)
    trash: TrashSection = TrashSection()
