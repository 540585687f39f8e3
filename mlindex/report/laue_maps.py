"""The maps of a scan as pictures: grains, orientations, misorientations, strains and how good the answers are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlindex.laue.maps.fields import SOLVED, STATES, ScanMaps, numbered_names
from mlindex.laue.maps.tensors import COMPONENTS
from mlindex.report import laue_maps_colour as colour
from mlindex.report.canvas import FAINT, INK, Picture
from mlindex.report.markup import Markup, element, join, table
from mlindex.report.quantities import count, percent, plural
from mlindex.report.section import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = ("x", "y", "z")
_STATE_COLOURS = ("#ffffff", "#9b1c3f", "#f2b84b", "#1f6fb2")  # in the order of STATES
_NOTHING = "#e4e7eb"  # where there is no grain
_PHASES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7b8794")
_WIDE, _TALL = 3.5, 3.2  # inches of one map
_QUALITY = {"match_rate", "score"}
_LISTED = 20  # grains that get a row


def ipf_columns(maps: ScanMaps) -> dict[str, NDArray[np.float64]]:
    """The colours (n, 3) of every point along x, y and z of the sample, by axis."""
    found = {axis: np.zeros((len(maps.frame), 3)) for axis in AXES}
    for which, phase in enumerate(maps.phases):
        mine = maps.points["phase"] == which + 1
        for i, axis in enumerate(AXES):
            # the row of the matrix is the direction of the sample in crystal axes
            found[axis][mine] = colour.ipf_colours(maps.points["orientation"][mine][:, i, :], phase)
    return found


def _bar_length(width: float) -> float:
    """A round length (micrometres), about a quarter of `width`."""
    power = 10.0 ** np.floor(np.log10(width / 4))
    return float(power * max(f for f in (1, 2, 5) if f * power <= width / 4))


def _length_text(micrometres: float) -> str:
    if micrometres >= 1000:
        return f"{micrometres / 1000:g} mm"
    return f"{micrometres:g} µm" if micrometres >= 1 else f"{micrometres * 1000:g} nm"


def _placed(axes: Axes, maps: ScanMaps, title: str) -> tuple[float, float, float, float]:
    """Prepare a panel with a scale bar below it; the extent of the map (micrometres)."""
    scan = maps.scan
    width, height = scan.columns * scan.step[1], scan.rows * scan.step[0]
    axes.set_title(title)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(True)
    length = _bar_length(width)
    below = axes.get_xaxis_transform()
    axes.plot(
        [0, length], [-0.035, -0.035], color=INK, linewidth=2.5, transform=below, clip_on=False, solid_capstyle="butt"
    )
    axes.text(length / 2, -0.055, _length_text(length), ha="center", va="top", transform=below)
    axes.set_facecolor(_NOTHING)
    return 0.0, width, height, 0.0


def _image(axes: Axes, maps: ScanMaps, values: NDArray, title: str, **options: Any) -> Any:
    extent = _placed(axes, maps, title)
    shown = axes.imshow(values, extent=extent, interpolation="nearest", **options)
    axes.set(xlim=extent[:2], ylim=extent[2:])
    return shown


def _painted(colours: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Colours (rows, columns, 3) where there are any, and that of nothing elsewhere."""
    from matplotlib.colors import to_rgb

    return np.where(there[..., None], np.nan_to_num(colours), to_rgb(_NOTHING))


def _limits(values: NDArray, signed: bool, from_zero: bool = True) -> tuple[float, float]:
    """The range of the colours: all but the outermost per cent; `signed` and `from_zero` fix where it lies."""
    fit = values[np.isfinite(values)]
    if not fit.size:
        return (-1.0, 1.0) if signed else (0.0, 1.0)
    if signed:
        top = max(float(np.percentile(np.abs(fit), 99)), 1e-9)
        return -top, top
    low, top = (float(v) for v in np.percentile(fit, (1, 99)))
    if not from_zero and low < top:
        return low, top
    return 0.0, top if top > 0 else 1.0


def _number(
    figure: Figure,
    axes: Axes,
    maps: ScanMaps,
    values: NDArray,
    title: str,
    unit: str,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
) -> None:
    """A panel of numbers with a colour bar."""
    low, high = _limits(values, signed) if limits is None else limits
    colours = "RdBu_r" if signed else "viridis"
    shown = _image(axes, maps, np.ma.masked_invalid(values), title, cmap=colours, vmin=low, vmax=high)
    bar = figure.colorbar(shown, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.grid(False)
    bar.set_label(unit)


def _classes(
    axes: Axes, maps: ScanMaps, values: NDArray, title: str, names: dict[int, str], colours: dict[int, str]
) -> None:
    """A panel of a few kinds with a legend."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    image = np.full((*values.shape, 4), np.array(to_rgba(_NOTHING)))
    there = [kind for kind in names if (values == kind).any()]
    for kind in there:
        image[values == kind] = to_rgba(colours[kind])
    _image(axes, maps, image, title)
    handles = [Patch(facecolor=colours[kind], edgecolor=FAINT, linewidth=0.5, label=names[kind]) for kind in there]
    if handles:
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1, handleheight=1)


def grain_colours(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """A colour (n, 3) for each number from 1 on, far from those of the numbers beside it, the same in every map."""
    from matplotlib.colors import hsv_to_rgb

    k = np.asarray(numbers, np.float64)
    # the golden ratio spreads the hues, whatever the last number is
    hue = (k * 0.6180339887498949) % 1.0
    return hsv_to_rgb(np.stack([hue, 0.45 + 0.25 * (k % 3) / 2, 0.95 - 0.22 * ((k // 3) % 3) / 2], -1))


def _borders(axes: Axes, maps: ScanMaps, number: NDArray[np.int64]) -> None:
    """Lines between frames of different grains."""
    from matplotlib.collections import LineCollection

    dy, dx = maps.scan.step
    lines = []
    for row, column in zip(*np.nonzero(number[:, 1:] != number[:, :-1]), strict=True):
        lines.append([((column + 1) * dx, row * dy), ((column + 1) * dx, (row + 1) * dy)])
    for row, column in zip(*np.nonzero(number[1:] != number[:-1]), strict=True):
        lines.append([(column * dx, (row + 1) * dy), ((column + 1) * dx, (row + 1) * dy)])
    axes.add_collection(LineCollection(lines, colors=INK, linewidths=0.6))


def _grains_picture(maps: ScanMaps) -> Picture:
    number = maps.strongest(maps.points["grain"])
    phase = maps.strongest(maps.points["phase"])

    def draw(figure: Figure) -> None:
        first, second, third, last = figure.subplots(2, 2).ravel()
        _image(first, maps, _painted(grain_colours(number), number > 0), "Grain")
        _borders(first, maps, number)
        names = numbered_names(maps.phases)
        _classes(second, maps, phase, "Phase", names, {k: _PHASES[(k - 1) % len(_PHASES)] for k in names})
        _number(figure, third, maps, np.where(maps.state == SOLVED, maps.n_grains, np.nan), "Grains in the frame", "")
        states = dict(enumerate(STATES))
        _classes(last, maps, maps.state, "Frame", states, dict(enumerate(_STATE_COLOURS)))

    caption = (
        f"The likeliest grain of each frame. Neighbouring frames are of one grain where they differ by less than "
        f"{maps.limit:g}°."
    )
    return Picture("map-grains", "Grains of the scan", caption, draw, (2 * _WIDE + 2.0, 2 * _TALL))


def _key(axes: Axes, maps: ScanMaps, which: int) -> None:
    phase = maps.phases[which]
    key = colour.ipf_key(phase)
    axes.set_axis_off()
    axes.imshow(key.image, extent=key.extent, origin="lower", interpolation="bilinear")
    axes.plot(*np.concatenate([key.outline, key.outline[:1]]).T, color=INK, linewidth=0.8)
    middle = (key.extent[2] + key.extent[3]) / 2
    for (x, y), label in key.corners:
        axes.annotate(
            label,
            (x, y),
            xytext=(0, 4 if y > middle else -4),
            textcoords="offset points",
            ha="center",
            va="bottom" if y > middle else "top",
            annotation_clip=False,
        )
    axes.set_title(f"{phase.name} ({phase.laue_group})", pad=16)
    axes.set_aspect("equal")
    axes.margins(0.12)


def _ipf_picture(maps: ScanMaps, colours: dict[str, NDArray[np.float64]]) -> Picture:
    keys = min(len(maps.phases), 3)

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 6, height_ratios=[_TALL, 2.0])
        number = maps.strongest(maps.points["grain"])
        for i, axis in enumerate(AXES):
            axes = figure.add_subplot(grid[0, 2 * i : 2 * i + 2])
            image = _painted(maps.strongest(colours[axis]), number > 0)
            _image(axes, maps, image, f"IPF along {axis} of the sample")
            _borders(axes, maps, number)
        for which in range(keys):
            _key(figure.add_subplot(grid[1, 2 * which : 2 * which + 2]), maps, which)

    caption = (
        f"The crystal direction along x, y and z of the sample (LT turned by {maps.tilt:g}° about y), by the colours "
        f"of its Laue class; the key is in stereographic projection, with directions [uvw]."
    )
    return Picture("map-ipf", "Orientation", caption, draw, (3 * _WIDE, _TALL + 2.2))


def _misorientation_picture(maps: ScanMaps) -> Picture:
    def draw(figure: Figure) -> None:
        panels = (("misorientation", "To the mean of the grain"), ("kam", "Kernel average (KAM)"))
        for axes, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
            values = maps.strongest(maps.points[name])
            _number(figure, axes, maps, values, title, "degrees")

    caption = "Misorientation to the mean orientation of the grain, and to the same grain in the frames around."
    return Picture("map-misorientation", "Misorientation", caption, draw, (2 * _WIDE + 1.2, _TALL))


def _strain_picture(maps: ScanMaps, kind: str, esd: bool) -> Picture:
    def draw(figure: Figure) -> None:
        suffix = "_esd" if esd else ""
        planes = [1e3 * maps.strongest(maps.points[f"strain_{kind}_{c}{suffix}"]) for c in COMPONENTS]
        limits = _limits(np.stack(planes), signed=not esd)
        for axes, plane, component in zip(figure.subplots(2, 3).ravel(), planes, COMPONENTS, strict=True):
            name = f"uncertainty of {component}" if esd else component
            _number(figure, axes, maps, plane, name, "1e-3", signed=not esd, limits=limits)

    axes_of = "the axes of the sample" if kind == "sample" else "the crystal axes (x along a, b in the plane xy)"
    what = "Standard uncertainty of the deviatoric strain" if esd else "Deviatoric strain"
    name = f"map-strain-{kind}{'-esd' if esd else ''}"
    return Picture(name, f"{what}, {kind} axes", f"{what} in {axes_of}.", draw, (3 * (_WIDE + 0.3), 2 * _TALL))


def _quality_picture(maps: ScanMaps) -> Picture:
    panels = (
        ("equivalent_strain", "Equivalent strain", "1e-3", 1e3),
        ("equivalent_strain_esd", "Its uncertainty", "1e-3", 1e3),
        ("match_rate", "Match rate", "%", 100.0),
        ("score", "Score", "nat", 1.0),
        ("rms_px", "rms of a coordinate", "px", 1.0),
        ("n_matched", "Spots of the grain", "", 1.0),
    )

    def draw(figure: Figure) -> None:
        for axes, (name, title, unit, factor) in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
            values = factor * maps.strongest(maps.points[name].astype(np.float64))
            _number(figure, axes, maps, values, title, unit, limits=_limits(values, False, "strain" in name))

    caption = "The equivalent (von Mises) strain of the likeliest grain of each frame, and how well it is known."
    return Picture("map-quality", "Equivalent strain and quality", caption, draw, (3 * (_WIDE + 0.3), 2 * _TALL))


def grain_picture(maps: ScanMaps, number: int, colours: dict[str, NDArray[np.float64]]) -> Picture:
    """The maps of one grain, also where another is likelier."""
    points = maps.points

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2, 3).ravel()
        here = maps.of_grain(points["grain"], number) > 0
        _image(panels[0], maps, _painted(maps.of_grain(colours["z"], number), here), "IPF along z of the sample")
        shown = (
            ("misorientation", "To the mean of the grain", "degrees", 1.0),
            ("kam", "Kernel average (KAM)", "degrees", 1.0),
            ("equivalent_strain", "Equivalent strain", "1e-3", 1e3),
            ("match_rate", "Match rate", "%", 100.0),
            ("score", "Score", "nat", 1.0),
        )
        for axes, (name, title, unit, factor) in zip(panels[1:], shown, strict=True):
            values = factor * maps.of_grain(points[name], number)
            _number(figure, axes, maps, values, title, unit, limits=_limits(values, False, name not in _QUALITY))

    phase, frames = maps.phases[maps.phase[number - 1]], plural(int(maps.pixels[number - 1]), "frame")
    title = f"Grain {number}: {phase.name}, {frames}"
    return Picture(f"grain-{number:04d}", title, f"The maps of grain {number}.", draw, (3 * (_WIDE + 0.3), 2 * _TALL))


def map_pictures(maps: ScanMaps, colours: dict[str, NDArray[np.float64]]) -> list[Picture]:
    """All maps of the likeliest grains; `colours` as `ipf_columns` gives them."""
    strains = [_strain_picture(maps, kind, esd) for kind in ("sample", "crystal") for esd in (False, True)]
    return [
        _grains_picture(maps),
        _ipf_picture(maps, colours),
        _misorientation_picture(maps),
        *strains,
        _quality_picture(maps),
    ]


def _grain_rows(maps: ScanMaps) -> Markup:
    """The largest grains in numbers."""
    rows = []
    for number in range(1, min(len(maps.pixels), _LISTED) + 1):
        mine = maps.points["grain"] == number
        spread = float(np.median(maps.points["misorientation"][mine]))
        strain = 1e3 * float(np.median(maps.points["equivalent_strain"][mine]))
        name = maps.phases[maps.phase[number - 1]].name
        rows.append([number, name, count(int(maps.pixels[number - 1])), f"{spread:.3f}", f"{strain:.3f}"])
    head = ["Grain", "Phase", "Frames", "Median angle to its mean (°)", "Median equivalent strain (1e-3)"]
    return table(head, rows, left=(1,), id="scan-grains")


def map_sections(maps: ScanMaps) -> list[Section]:
    """The main maps as a section of the report; nothing where no frame has a grain."""
    if not len(maps.frame):
        return []
    colours = ipf_columns(maps)
    main = {"map-grains", "map-ipf", "map-misorientation", "map-strain-sample", "map-quality"}
    pictures = [picture for picture in map_pictures(maps, colours) if picture.name in main]
    solved = int((maps.state == SOLVED).sum())
    scan = f" in a scan of {maps.scan.rows} × {maps.scan.columns} frames"
    share = f"; {percent(solved, maps.scan.size)} of them are solved."
    glance = join([element("b", plural(len(maps.pixels), "grain")), scan, share])
    parts: list[Markup | Picture] = [*pictures, element("h3", "The largest grains"), _grain_rows(maps)]
    return [Section("maps-section", "Maps", parts, glance=[glance])]
