"""Settings: TOML -> validated, frozen objects. An unknown key is answered with the valid ones."""

from __future__ import annotations

import datetime
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
)

from mlindex.records import InputError

Bravais = Literal["cP", "cI", "cF", "tP", "tI", "hP", "hR", "oP", "oS", "oI", "oF", "mP", "mC", "aP"]
Quantity = Literal["q2", "q", "d", "tth"]
Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LocatedSettings(Settings):
    """Settings with paths in them, which are relative to the campaign file, or to the working directory."""

    _base: Path = PrivateAttr(default_factory=Path)

    def relative_to(self, folder: Path) -> LocatedSettings:
        """The same settings, with their paths counted from `folder`."""
        copy = self.model_copy()
        copy._base = folder
        return copy

    def located(self, name: str) -> str:
        """A path of these settings as seen from the working directory."""
        return str(self._base / name)


class PowderSettings(LocatedSettings):
    """What a user may choose for powder indexing."""

    effort: Literal["quick", "normal", "thorough"] = "normal"
    lattice: tuple[Bravais, ...] = ()  # empty: all fourteen
    max_volume: float | None = Field(None, gt=0)  # conventional cell, cubic angstrom; None: from the density of lines
    impurities: int = Field(3, ge=0, le=6)  # lines that a smaller relative of a good cell may leave unexplained
    zero_shift: bool = True  # fit a 2theta zero shift where the wavelength is known
    solutions: int = Field(10, ge=1, le=100)  # reported for each list
    quantity: Quantity | None = None  # None: the file's header says
    wavelength: float | None = Field(None, gt=0)  # angstrom; None: the file's header says
    geometry: str | None = None  # of stills, a CrystFEL .geom; None: that in the stream
    seed: int = Field(0, ge=0)


def _band(energy: tuple[float, float]) -> tuple[float, float]:
    if not 0 < energy[0] < energy[1] <= 200:
        raise ValueError("give the lowest and the highest energy in keV, as 5 and 23")
    return energy


def _scan(scan: tuple[int, int] | None) -> tuple[int, int] | None:
    if scan is not None and min(scan) < 1:
        raise ValueError("give the rows and the columns of the scan, as [20, 30]")
    return scan


def _step(step: tuple[float, float] | None) -> tuple[float, float] | None:
    if step is not None and not all(0 < s < math.inf for s in step):
        raise ValueError("give the steps between rows and between columns in micrometres, as [1.0, 0.5]")
    return step


class LaueSettings(LocatedSettings):
    """What a user may choose for Laue indexing. The search has no random part, and so no seed."""

    materials: tuple[str, ...] = ()  # names, CIFs, or NAME:SPACEGROUP:a,b,c,alpha,beta,gamma; one at least
    detector: str | None = None  # a .det, or a .cor with a footer; None: what each spot list says in its footer
    energy: Annotated[tuple[float, float], AfterValidator(_band)] = (5.0, 23.0)  # keV, lowest and highest
    grains: int | None = Field(None, ge=1)  # at most so many in a frame; None: all that are beyond chance
    network: bool = False  # let a trained network propose orientations too; `mlindex train laue` makes it
    threshold: float = Field(6.0, gt=0)  # images: spots stand so many times above the noise
    max_spots: int = Field(10_000, ge=6)  # of a frame, the brightest
    dataset: str | None = None  # of an HDF5 file with images; None: the usual one
    # the frames are those of a scan of so many rows and columns, along a row first, in the order of the inputs
    scan: Annotated[tuple[int, int] | None, AfterValidator(_scan)] = None
    step: Annotated[tuple[float, float] | None, AfterValidator(_step)] = None  # micrometres, of rows, columns; None: 1
    neighbours: bool | None = None  # try the grains of the frame before, and above, first; None: in scans and stacks


def _thicknesses(thickness: tuple[float, float]) -> tuple[float, float]:
    if not 0 < thickness[0] < thickness[1] <= 10_000:
        raise ValueError("give the least and the greatest thickness in nanometres, as [5, 100]")
    return thickness


class BlochSettings(LocatedSettings):
    """What a user may choose for the inversion of LARBED patterns."""

    thickness_nm: Annotated[tuple[float, float], AfterValidator(_thicknesses)] = (5.0, 100.0)  # least, greatest
    # a CIF, or lines 'h k l re im' (1/angstrom^2); None: the CIF that the pattern names; "blind": neither
    start: str | None = None
    real: bool = False  # search only crystals that have a centre, in projection: every U is real
    symmetry: bool = True  # find the symmetry of the projection in the pattern and tie structure factors by it
    cutoff: float | None = Field(
        None, gt=0
    )  # 1/angstrom: U of longer g stay as in `start`, or zero; None: all are fitted
    fit_scale: bool = False  # fit what the intensities are multiplied by; for patterns that lack a part of the beams
    fit_background: bool = False  # fit an intensity that all beams and tilts have more, or less
    weights: Literal["poisson", "uniform"] = "poisson"  # of intensities: those of counting noise, or all alike
    seconds: float = Field(1200.0, gt=0)  # a pattern: no new start after these, what is best by then is the answer
    seed: int = Field(0, ge=0)
    alternatives: int = Field(3, ge=0, le=100)  # other solutions that explain a pattern nearly as well, at most


class CampaignSettings(Settings):
    """One campaign: which inputs, which stage, where to."""

    name: str = "campaign"
    stage: str = "powder"
    inputs: tuple[str, ...] = Field(min_length=1)  # paths or globs, relative to the TOML file
    output: str = "run"  # relative to the TOML file
    batch: int | None = Field(None, ge=1)  # items a worker takes at a time; None: from the time that an item takes
    chunk: Literal["files", "items"] = "files"  # what `--part K/N` divides: the list of files, or each file's items
    item_seconds: float | None = Field(None, gt=0, le=1e6)  # an item that takes longer has failed; None: no limit
    stop_after: int | None = Field(None, ge=1)  # solved items after which nothing more is begun
    max_failures: int | None = Field(None, ge=0)  # failed items beyond which nothing more is begun
    relaunch_seconds: float = Field(
        30.0, ge=0
    )  # lost workers are replaced, all starting anew, where that saves so much
    rounds: int = Field(3, ge=1)  # jobs in a row that may be stopped by a signal without having done an item


def _one_line(text: str) -> str:
    if not text.strip() or any(not character.isprintable() for character in text):
        raise ValueError("give one line of printable characters")
    return text


def _option(text: str) -> str:
    text = text.removeprefix("#SBATCH").strip()
    if not text.startswith("-"):
        raise ValueError('give an option of sbatch, as "--mail-type=END"')
    return text


_DURATION = (
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
)


def seconds_from_duration(text: str) -> int:
    """Seconds of SLURM's "minutes", "minutes:seconds", "hours:minutes:seconds", "days-hours[:minutes[:seconds]]"."""
    found = next((match for form in _DURATION if (match := form.fullmatch(text))), None)
    if found is None:
        raise ValueError('give the time as SLURM does, as "04:00:00" or "1-12"')
    parts = {name: int(value or 0) for name, value in found.groupdict().items()}
    return int(datetime.timedelta(**parts).total_seconds())


def _duration(text: str) -> str:
    seconds_from_duration(text)
    return text


def _as_duration(value: Any) -> Any:
    if isinstance(value, datetime.time):  # 04:00:00 without quotes
        return value.isoformat("seconds")
    if isinstance(value, int) and not isinstance(value, bool):  # minutes
        return str(value)
    return value


def _memory(text: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", text):
        raise ValueError('give the memory of a node as SLURM does, as "64G"')
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
        raise ValueError("is no name of a variable")
    return name


def _as_variables(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not all(isinstance(entry, str) and "=" in entry for entry in value):
            raise ValueError('give a table, or a list as ["NAME=value"]')
        return dict(entry.split("=", 1) for entry in value)
    if isinstance(value, dict):
        return {k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for k, v in value.items()}
    return value


Line = Annotated[str, AfterValidator(_one_line)]
Option = Annotated[Line, AfterValidator(_option)]
Memory = Annotated[str, AfterValidator(_memory)]
Duration = Annotated[str, BeforeValidator(_as_duration), AfterValidator(_duration)]
Variable = Annotated[str, AfterValidator(_variable)]
Variables = Annotated[dict[Variable, Line | Literal[""]], BeforeValidator(_as_variables)]


class SlurmResources(Settings):
    """What one SLURM job gets and how it starts; None or empty: the cluster's default."""

    tasks: int = Field(1, ge=1)  # jobs of the array, each a part of the campaign
    limit: int | None = Field(None, ge=1)  # of them at a time; None: as many as the cluster has room for
    ranks: int | None = Field(None, ge=1)  # worker ranks a task, over all its nodes; None: one a GPU, or one a node
    nodes: int = Field(1, ge=1)  # a task
    cpus_per_rank: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    time: Duration = "01:00:00"  # as sbatch's --time; what is not done by then goes on in the next round
    memory: Memory | None = None  # a node, as sbatch's --mem
    signal_seconds: int = Field(90, ge=1, le=65535)  # how long before the limit the ranks are told to end
    requeue: bool = True  # put a task that the limit cut short, or whose node failed, back into the queue
    launcher: Literal["mpiexec", "srun"] = "mpiexec"
    mpi: Line | None = None  # srun's --mpi (pmix, pmi2, ...)
    modules: tuple[Line, ...] = ()  # `module load`, in this order
    container: Line | None = None  # an image that apptainer runs
    binds: tuple[Line, ...] = ()  # more folders to see in it
    python: Line | None = None  # the interpreter; None: the one that runs `submit`, or `python` in the container
    environment: Variables = {}
    setup: tuple[Line, ...] = ()  # shell lines to run first, in the folder of the campaign file
    extra: tuple[Option, ...] = ()  # more options of sbatch, as "--mail-type=END"

    def _over(self, names: Iterable[str], changes: SlurmResources | None) -> SlurmResources:
        """The named settings of this table, with the changes that another table makes."""
        values = {name: getattr(self, name) for name in names if name in self.model_fields_set}
        if changes is not None:
            values |= {name: getattr(changes, name) for name in changes.model_fields_set}
        return SlurmResources(**values)

    @property
    def workers(self) -> int:
        """Worker ranks a task."""
        return self.nodes * max(self.gpus_per_node, 1) if self.ranks is None else self.ranks

    def misfit(self) -> str:
        """A sentence on what in these settings does not go together; empty where all does."""
        if self.workers % self.nodes:
            return f"ranks = {self.ranks} cannot be shared out evenly over nodes = {self.nodes}; change one of them"
        if self.workers < self.nodes * self.gpus_per_node:
            return f"ranks = {self.ranks} leaves GPUs idle; leave ranks out to have one a GPU, or ask for fewer GPUs"
        if self.container is not None and self.nodes > 1 and self.launcher == "mpiexec":
            return 'mpiexec cannot reach other nodes out of a container; use launcher = "srun", or nodes = 1'
        if seconds_from_duration(self.time) <= self.signal_seconds:
            return f"time = {self.time!r} is not longer than signal_seconds = {self.signal_seconds}; give more time"
        return ""


# what the merge job takes over from the array: where it may run and what it runs in, but not how much of it
_SHARED = ("partition", "account", "qos", "modules", "container", "binds", "python", "environment", "setup")


class SlurmSettings(SlurmResources):
    """How `submit` asks for the jobs of a campaign: a table for all, and what is different for a stage or the merge."""

    stage: dict[str, SlurmResources] = {}
    merge: SlurmResources = SlurmResources()

    def for_stage(self, name: str) -> SlurmResources:
        """The resources of an array task of a stage."""
        return self._over(SlurmResources.model_fields, self.stage.get(name))

    def for_merge(self, name: str) -> SlurmResources:
        """The resources of the job that merges and reports on a stage's results."""
        return self.for_stage(name)._over(_SHARED, self.merge)


class Campaign(Settings):
    """A whole campaign file."""

    campaign: CampaignSettings
    powder: PowderSettings = PowderSettings()
    laue: LaueSettings = LaueSettings()
    bloch: BlochSettings = BlochSettings()
    slurm: SlurmSettings = SlurmSettings()

    def stage_settings(self) -> Settings | None:
        """The settings of the campaign's stage (None for a stage that has no section)."""
        return getattr(self, self.campaign.stage, None)


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owner: Any = model
        for part in first["loc"][:-1]:
            # a table of tables is a dict; its keys are the user's own
            owner = get_args(owner)[1] if get_args(owner) else owner.model_fields[str(part)].annotation
        return f"unknown key {place!r}; the valid keys are {', '.join(owner.model_fields)}"
    return f"{place}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"


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
    campaign = validated(Campaign, values, str(path))
    there = {name: getattr(campaign, name).relative_to(path.parent) for name in ("powder", "laue", "bloch")}
    return campaign.model_copy(update=there)
