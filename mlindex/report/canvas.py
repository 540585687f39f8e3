"""Pictures: drawn once with Matplotlib, put into the page as SVG and beside it as PNG.

Matplotlib is imported when something is drawn, and never its `pyplot`: no window, no global state. The colours are
those of Okabe & Ito, or differ in lightness too, so that they can be told apart without red and green.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlindex.records import InputError
from mlindex.report.markup import Markup, element, join, text
from mlindex.report.quantities import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
STATUS_COLOURS = {"solved": "#1f6fb2", "unsolved": "#f2b84b", "failed": "#9b1c3f"}
DPI = 160
_STYLE: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: to be searched, copied, and read aloud
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report: `draw` fills an empty one of `size` (inches); `numbers` are a table of what it shows.

    `name` is that of the PNG and an id in the page.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Figure], None]
    size: tuple[float, float] = (10.8, 3.0)
    numbers: Markup | None = None


def check() -> None:
    """Raise `InputError` where Matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "the report needs Matplotlib, which is not installed; install it with: pip install 'mlindex-hpc[report]'"
        ) from None


def render(picture: Picture) -> tuple[Markup, bytes]:
    """The picture as an SVG element and as the bytes of a PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": picture.name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=picture.size, layout="constrained")
        FigureCanvasAgg(figure)
        picture.draw(figure)
        vector, raster = io.StringIO(), io.BytesIO()
        figure.savefig(raster, format="png", dpi=DPI, metadata={"Software": "mlindex", "Title": picture.title})
        figure.set_layout_engine("none")  # the panels have their places; finding them takes longest
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(vector, format="svg", metadata=nothing)
    return _inline(vector.getvalue(), picture), raster.getvalue()


def _inline(svg: str, picture: Picture) -> Markup:
    """A stand-alone SVG document as an element of an HTML page, its ids made unique in the page."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{picture.name}-", svg)
    label = text(f"{picture.title}. {picture.caption}")
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box is not None
    return Markup(f'<svg {box[0]} role="img" aria-label="{label}">{svg[head.end() :]}')


def figure_element(picture: Picture, svg: Markup, png: str) -> Markup:
    """The figure with its caption, the link to its PNG, and its numbers to unfold."""
    numbers = element("details", element("summary", "Numbers"), picture.numbers) if picture.numbers else None
    caption = join([element("b", picture.title + ". "), picture.caption, " ", element("a", "PNG", href=png)])
    return element("figure", svg, element("figcaption", caption), numbers, id=picture.name)


def note(axes: Axes, sentence: str) -> None:
    """A panel without data says so."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", color=FAINT, transform=axes.transAxes)


def bar_edges(values: NDArray, bins: int, low: float | None = None, high: float | None = None) -> NDArray[np.float64]:
    """`bins` + 1 equidistant edges around the values (from `low` to `high`, where given), never of no width."""
    start = float(values.min()) if low is None else low
    stop = float(values.max()) if high is None else high
    if not stop > start:
        margin = max(abs(start) * 0.01, 1e-3)
        start, stop = start - margin, stop + margin
    return np.linspace(start, stop, bins + 1)


def log_edges(values: NDArray, bins: int) -> NDArray[np.float64]:
    """`bins` + 1 edges, equidistant on a logarithmic scale, around positive values."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        low, high = low / 1.1, high * 1.1
    edges = np.geomspace(low, high, bins + 1)
    edges[0], edges[-1] = low, high  # geomspace may miss its ends by a rounding error, and with them an item
    return edges


def stacked(
    axes: Axes, edges: NDArray, counts: Mapping[str, NDArray], colours: Mapping[str, str], labels: bool = False
) -> None:
    """Histograms on top of each other, one path each: `counts` maps names to (k,) counts between edges (k + 1,)."""
    base = np.zeros(len(edges) - 1)
    for name, values in counts.items():
        if values.any():
            axes.stairs(
                base + values,
                edges,
                baseline=base,
                fill=True,
                color=colours[name],
                linewidth=0,
                label=name if labels else None,
            )
            base = base + values
    axes.set_ylim(0, max(float(base.max(initial=0)) * 1.08, 1))
    axes.set_xlim(edges[0], edges[-1])
    whole_numbers(axes)


def whole_numbers(axes: Axes) -> None:
    """Counts have no decimals, and spaces between thousands."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def logarithmic(axes: Axes, edges: NDArray) -> None:
    """A logarithmic x axis between the edges with plain numbers: 1, 2, 5, 10, or powers of ten over a long range."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    subs = (1, 2, 5) if edges[-1] < 200 * edges[0] else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, names: Sequence[str], colours: Mapping[str, str]) -> None:
    """One legend for all panels, above them."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colours[name], label=name) for name in names]
    figure.legend(
        handles=handles, loc="outside upper right", ncols=max(len(handles), 1), handlelength=1, handleheight=1
    )
