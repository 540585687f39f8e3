"""Settings: TOML -> validated, frozen objects. An unknown key is answered with the valid ones."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlindex.records import InputError

Bravais = Literal["cP", "cI", "cF", "tP", "tI", "hP", "hR", "oP", "oS", "oI", "oF", "mP", "mC", "aP"]
Quantity = Literal["q2", "q", "d", "tth"]
Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PowderSettings(Settings):
    """What a user may choose for powder indexing."""

    effort: Literal["quick", "normal", "thorough"] = "normal"
    lattice: tuple[Bravais, ...] = ()  # empty: all fourteen
    max_volume: float | None = Field(None, gt=0)  # conventional cell, cubic angstrom; None: from the density of lines
    impurities: int = Field(3, ge=0, le=6)  # unexplained lines tolerated among the first twenty
    zero_shift: bool = True  # fit a 2theta zero shift where the wavelength is known
    solutions: int = Field(10, ge=1, le=100)  # reported for each list
    quantity: Quantity | None = None  # None: the file's header says
    wavelength: float | None = Field(None, gt=0)  # angstrom; None: the file's header says
    seed: int = Field(0, ge=0)


class CampaignSettings(Settings):
    """One campaign: which inputs, which stage, where to."""

    name: str = "campaign"
    stage: str = "powder"
    inputs: tuple[str, ...] = Field(min_length=1)  # paths or globs, relative to the TOML file
    output: str = "run"  # relative to the TOML file
    batch: int | None = Field(None, ge=1)  # items a worker takes at a time; None: from the time that an item takes
    chunk: Literal["files", "items"] = "files"  # what `--part K/N` divides: the list of files, or each file's items
    item_seconds: float | None = Field(None, gt=0)  # an item that takes longer has failed; None: no limit
    stop_after: int | None = Field(None, ge=1)  # solved items after which nothing more is begun
    max_failures: int | None = Field(None, ge=0)  # failed items beyond which nothing more is begun
    rounds: int = Field(3, ge=1)  # jobs in a row that may be stopped by a signal without having done an item


class Campaign(Settings):
    """A whole campaign file."""

    campaign: CampaignSettings
    powder: PowderSettings = PowderSettings()

    def stage_settings(self) -> Settings | None:
        """The settings of the campaign's stage (None for a stage that has no section)."""
        return getattr(self, self.campaign.stage, None)


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owner: Any = model
        for part in first["loc"][:-1]:
            owner = owner.model_fields[str(part)].annotation
        return f"unknown key {place!r}; the valid keys are {', '.join(owner.model_fields)}"
    return f"{place}: {first['msg']} (got {first['input']!r})"


def validated(model: type[Model], values: dict[str, Any], origin: str) -> Model:
    """`model` made from `values`; raises `InputError` naming `origin`, the key and what is allowed."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {_sentence(error, model)}") from None


def read_campaign(path: Path | str) -> Campaign:
    """The campaign in a TOML file; raises `InputError` with one sentence that says what to change."""
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a campaign TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid TOML ({error}); correct that line") from None
    return validated(Campaign, values, str(path))
