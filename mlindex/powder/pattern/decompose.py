"""A pattern as a background and peaks: search, fit, look at what is left, until nothing significant is.

Lines nearer to each other than `_APART` widths are fitted together, the others are held meanwhile, and the sweep over
the groups is repeated; then widths and shapes of the strong lines give those that weak lines are tied to, the
background is drawn anew beneath the peaks, and the rest is searched again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import maximum_filter1d

from mlindex.powder.pattern.background import background, background_beneath
from mlindex.powder.pattern.detect import maxima, significance, typical_width
from mlindex.powder.pattern.fit import Shape, fit_group
from mlindex.powder.pattern.noise import Noise, sums
from mlindex.powder.pattern.profile import AREA, PARAMETERS, RATIO, Doublet, height, second_position, total

_ROUNDS = 5  # of searching the rest
_SWEEPS = 2  # over the groups, a round
_APART = 2.0  # widths between lines that are fitted apart from each other
_WINDOW = 3.0  # widths to either side of a line that its fit looks at
_CROWD = 8  # lines fitted together at most
_STRONG = 15.0  # significance of lines that say what a line looks like
_CREEP = 0.4  # of ln(width): how far the strong lines can move it from its first estimate
_FIRST_SPREAD = 0.4  # of ln(width) before the strong lines have spoken
_SPREADS = (0.05, 0.2)  # of ln(width) of a line: the least and the largest that may come of them
_ETA, _ETA_SPREAD = 0.5, 0.25
_SKEW_SPREAD = 0.1
_MISFIT = 0.04  # of the height of fitted lines: how wrong profiles may be, in looking for more beside them
_TAIL, _SHADE = 0.01, 2.0  # of the height of the highest line within so many widths: how wrong its tails may be
_CLOSE = 0.45  # widths: of two lines nearer to each other the weaker one goes
_FEWEST = 32  # points of a pattern


@dataclass(frozen=True)
class Peaks:
    """Fitted peaks, ascending; all (n,). `position`, `position_esd` and `width` (at half maximum) in units of x,
    `height` in those of y, `area` and `area_esd` in x times y, of a doublet both lines; `eta` 0 Gaussian to 1
    Lorentzian; `significance`: square root of the deviance that the peak takes away."""

    position: Float[np.ndarray, " n"]
    position_esd: Float[np.ndarray, " n"]
    height: Float[np.ndarray, " n"]
    width: Float[np.ndarray, " n"]
    eta: Float[np.ndarray, " n"]
    area: Float[np.ndarray, " n"]
    area_esd: Float[np.ndarray, " n"]
    significance: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True)
class Decomposition:
    """`background` (n,) of the points, the `peaks`, and `reduced`: the deviance a point, about 1 for a true model."""

    background: Float[np.ndarray, " n"]
    peaks: Peaks
    reduced: float


@dataclass
class _State:
    parameters: Float[np.ndarray, "m 5"]
    covariance: Float[np.ndarray, "m 5"]  # diagonals
    significance: Float[np.ndarray, " m"]
    shape: Shape


class _Pattern:
    """The points and what does not change over the rounds."""

    def __init__(
        self,
        x: Float[np.ndarray, " n"],
        y: Float[np.ndarray, " n"],
        noise: Noise,
        doublet: Doublet | None,
        gaussian: bool,
        cut: float,
    ) -> None:
        self.x, self.y, self.noise, self.doublet, self.gaussian, self.cut = x, y, noise, doublet, gaussian, cut
        self.step = float(np.median(np.diff(x)))
        self.first = 0.0  # ln(width) as estimated before any fit

    def ends(self, at: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Where the last line of each peak is."""
        return at if self.doublet is None else second_position(at, self.doublet)[0]

    def first_state(self, tops: Int[np.ndarray, " m"], curve: Float[np.ndarray, " n"], width: float) -> _State:
        self.first = float(np.log(width))
        parameters = self.starts(tops, self.y - curve, np.full(len(tops), width))
        spread = np.array([_FIRST_SPREAD, *((0.0, 0.0) if self.gaussian else (_ETA_SPREAD, _SKEW_SPREAD))])
        shape = Shape(parameters[:, 1:AREA].copy(), spread)
        return _State(parameters, np.zeros_like(parameters), np.zeros(len(tops)), shape)

    def starts(
        self, tops: Int[np.ndarray, " m"], excess: Float[np.ndarray, " n"], width: Float[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m 5"]:
        """Peaks at points, as wide as said (units of x)."""
        half = max(1, round(0.25 * float(np.median(width)) / self.step)) if len(tops) else 1
        level = (sums(excess, half) / sums(np.ones_like(excess), half))[tops]
        eta = np.full(len(tops), 0.0 if self.gaussian else _ETA)
        area = np.maximum(level, 0.0) * width * 1.1 * (1.0 if self.doublet is None else 1 + RATIO)
        return np.stack([self.x[tops], np.log(width), eta, np.zeros(len(tops)), area], 1)

    def groups(self, parameters: Float[np.ndarray, "m 5"]) -> list[Int[np.ndarray, " k"]]:
        """Indices of the lines (ascending in position) that are fitted together."""
        if not len(parameters):
            return []
        width = np.exp(parameters[:, 1])
        gap = parameters[1:, 0] - self.ends(parameters[:-1, 0])
        cuts = np.flatnonzero(gap > _APART * np.maximum(width[1:], width[:-1])) + 1
        out: list[Int[np.ndarray, " k"]] = []
        for group in np.split(np.arange(len(parameters)), cuts):
            while len(group) > _CROWD:  # cut at its widest gap
                middle = slice(1, len(group) - 2)
                at = 2 + int(np.argmax(np.diff(parameters[group, 0])[middle]))
                if at > _CROWD:
                    at = _CROWD
                out.append(group[:at])
                group = group[at:]
            out.append(group)
        return out

    def sweep(self, state: _State, curve: Float[np.ndarray, " n"], deviances: bool) -> None:
        """Fit each group with the others held; at the end of it also say how significant each peak is."""
        model = total(self.x, state.parameters, self.doublet)
        for group in self.groups(state.parameters):
            mine = state.parameters[group]
            width = float(np.exp(np.max(mine[:, 1])))
            begin = int(np.searchsorted(self.x, mine[0, 0] - _WINDOW * width))
            end = int(np.searchsorted(self.x, float(self.ends(mine[-1:, 0])[0]) + _WINDOW * width))
            part = slice(max(0, begin - 3), min(len(self.x), end + 3))
            given = curve[part] + model[part] - total(self.x[part], mine, self.doublet)
            shape = Shape(state.shape.expected[group], state.shape.spread)
            fitted = fit_group(
                self.x[part],
                self.y[part],
                given,
                mine,
                noise=self.noise.part(part),
                shape=shape,
                doublet=self.doublet,
            )
            model += total(self.x, fitted.parameters, self.doublet) - total(self.x, mine, self.doublet)
            state.parameters[group] = fitted.parameters
            scale = max(fitted.reduced, 1.0)
            state.covariance[group] = scale * np.diag(fitted.covariance).reshape(-1, PARAMETERS)
            if deviances:
                state.significance[group] = self.removed(part, given, fitted.parameters) / np.sqrt(scale)

    def removed(
        self, part: slice, given: Float[np.ndarray, " n"], parameters: Float[np.ndarray, "m 5"]
    ) -> Float[np.ndarray, " m"]:
        """The square root of what the deviance rises by when one peak is taken away."""
        noise, x, y = self.noise.part(part), self.x[part], self.y[part]
        whole = given + total(x, parameters, self.doublet)
        least = noise.deviance(y, whole)
        gain = [noise.deviance(y, whole - total(x, row[None], self.doublet)) - least for row in parameters]
        return np.sqrt(np.maximum(gain, 0.0))

    def keep(self, state: _State, chosen: np.ndarray) -> None:
        state.shape = Shape(state.shape.expected[chosen], state.shape.spread)
        state.parameters, state.covariance = state.parameters[chosen], state.covariance[chosen]
        state.significance = state.significance[chosen]

    def prune(self, state: _State) -> None:
        """Leave out what is not significant, lies at the ends, or cannot be told from a stronger neighbour."""
        p = state.parameters
        width = np.exp(p[:, 1])
        inside = (p[:, 0] > self.x[0] + 0.5 * width) & (p[:, 0] < self.x[-1] - 0.5 * width)
        sure = (state.significance > self.cut) & (p[:, AREA] ** 2 > (0.6 * self.cut) ** 2 * state.covariance[:, AREA])
        located = np.sqrt(state.covariance[:, 0]) < 0.5 * width
        good = inside & sure & located
        for i in np.argsort(-p[:, AREA]):
            if good[i]:
                near = np.abs(p[:, 0] - p[i, 0]) < _CLOSE * width[i]
                near[i] = False
                good[near] = False
        self.keep(state, np.flatnonzero(good))

    def learn_shape(self, state: _State) -> None:
        """The width as a smooth function of x, and eta, from the strong lines."""
        p = state.parameters
        strong = state.significance > _STRONG
        if np.count_nonzero(strong) < 3:
            return
        at = (p[:, 0] - self.x[0]) / (self.x[-1] - self.x[0])
        degree = 0 if np.count_nonzero(strong) < 6 else 1 if np.count_nonzero(strong) < 12 else 2
        use = np.flatnonzero(strong)
        for _ in range(4):
            fit = np.polyfit(at[use], p[use, 1], degree)
            miss = p[strong, 1] - np.polyval(fit, at[strong])
            spread = max(1.4826 * float(np.median(np.abs(miss))), 0.02)
            kept = np.flatnonzero(strong)[np.abs(miss) < 3 * spread]
            if len(kept) < degree + 3:
                break
            use = kept
        low, high = float(np.min(p[use, 1])), float(np.max(p[use, 1]))
        expected = state.shape.expected.copy()
        expected[:, 0] = np.clip(np.polyval(fit, at), max(low, self.first - _CREEP), min(high, self.first + _CREEP))
        new_spread = state.shape.spread.copy()
        new_spread[0] = float(np.clip(1.5 * spread, *_SPREADS))
        if not self.gaussian:
            expected[:, 1] = float(np.median(p[use, 2]))
            # Axial divergence skews lines as the cotangent of 2theta does; a straight line is near enough
            skews = p[use, 3]
            expected[:, 2] = np.polyval(np.polyfit(at[use], skews, min(degree, 1)), at) if degree else np.median(skews)
        state.shape = Shape(expected, new_spread)

    def overlooked(self, state: _State, curve: Float[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """Points where what is left of the pattern is significant, also beside profiles that fit badly."""
        peaks = total(self.x, state.parameters, self.doublet)
        model = curve + peaks
        width = float(np.exp(np.median(state.shape.expected[:, 0]))) / self.step
        highest = maximum_filter1d(peaks, 2 * round(_SHADE * width) + 1)
        misfit = _MISFIT * peaks + _TAIL * highest
        tops = maxima(self.y, model, Noise(variance=self.noise.variance_of(model) + misfit**2), width, self.cut)
        tops = tops[significance(self.y, model, self.noise, width)[tops] > self.cut]
        # A misfit goes on from point to point where noise does not
        half = max(1, round(width / 2))
        error = np.hypot(np.sqrt(sums(self.noise.variance_of(model), half)), sums(misfit, half))
        tops = tops[(sums(self.y - model, half) > error)[tops]]
        if len(state.parameters) and len(tops):
            apart = np.abs(self.x[tops][:, None] - state.parameters[:, 0]).min(axis=1)
            tops = tops[apart > 0.5 * width * self.step]
        return tops


def _without_second_lines(
    x: Float[np.ndarray, " n"],
    excess: Float[np.ndarray, " n"],
    tops: Int[np.ndarray, " m"],
    doublet: Doublet,
    width: float,
) -> Int[np.ndarray, " k"]:
    """The tops that are not K alpha 2 of a stronger one."""
    seconds, _ = second_position(x[tops], doublet)
    second = [
        bool(
            np.any(
                (np.abs(seconds - x[t]) < 0.4 * width)
                & (excess[t] < 0.8 * excess[tops])
                & (excess[t] > 0.25 * excess[tops])
            )
        )
        for t in tops
    ]
    return tops[~np.array(second, bool)]


def decompose(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    *,
    noise: Noise,
    doublet: Doublet | None = None,
    gaussian: bool = False,
    cut: float = 5.0,
) -> Decomposition:
    """The background and the peaks of a pattern.

    `x` ascends in (nearly) equal steps: 2theta in degrees where there is a `doublet`, else anything. `gaussian` fixes
    eta at 0. `cut`: standard deviations that a peak must have. Raises `ValueError` for fewer than 32 points.
    """
    if len(x) < _FEWEST:
        raise ValueError(f"{len(x)} points are no pattern; it takes at least {_FEWEST}")
    unit = noise.unit(y)  # or the answer would depend on the scale of the intensities
    pattern = _Pattern(x, y / unit, noise.divided(unit), doublet, gaussian, cut)
    curve, state = _fitted(pattern)
    reduced = _reduced(pattern, state, curve)
    state.parameters[:, AREA] *= unit
    state.covariance[:, AREA] *= unit**2
    return Decomposition(unit * curve, _peaks(state, doublet), reduced)


def _fitted(pattern: _Pattern) -> tuple[Float[np.ndarray, " n"], _State]:
    """The background of the points, and the peaks."""
    x, y, noise, doublet, cut = pattern.x, pattern.y, pattern.noise, pattern.doublet, pattern.cut
    points = typical_width(y, noise)
    curve = background(y, noise, points)
    width = points * pattern.step
    tops = maxima(y, curve, noise, points, cut)
    if doublet is not None and len(tops):
        tops = _without_second_lines(x, y - curve, tops, doublet, width)
    state = pattern.first_state(tops, curve, width)
    for _ in range(_ROUNDS):
        for sweep in range(_SWEEPS):
            pattern.sweep(state, curve, sweep == _SWEEPS - 1)
        pattern.prune(state)
        pattern.learn_shape(state)
        if not len(state.parameters):
            break
        points = float(np.exp(np.median(state.shape.expected[:, 0]))) / pattern.step
        curve = background_beneath(y, total(x, state.parameters, doublet), curve, noise, max(points, 2.0))
        more = pattern.overlooked(state, curve)
        if not len(more):
            break
        rest = y - curve - total(x, state.parameters, doublet)
        shapes = state.shape.expected
        expected = np.stack([np.interp(x[more], state.parameters[:, 0], column) for column in shapes.T], 1)
        added = pattern.starts(more, rest, np.exp(expected[:, 0]))
        added[:, 1:AREA] = expected
        _join(state, added)
    for _ in range(_SWEEPS):
        pattern.sweep(state, curve, True)
        pattern.prune(state)
    return curve, state


def _join(state: _State, added: Float[np.ndarray, "k 5"]) -> None:
    parameters = np.concatenate([state.parameters, added])
    order = np.argsort(parameters[:, 0], kind="stable")
    state.shape = Shape(np.concatenate([state.shape.expected, added[:, 1:AREA]])[order], state.shape.spread)
    state.parameters = parameters[order]
    state.covariance, state.significance = np.zeros_like(parameters), np.zeros(len(parameters))


def _peaks(state: _State, doublet: Doublet | None) -> Peaks:
    p = state.parameters
    order = np.argsort(p[:, 0], kind="stable")
    p, esd = p[order], np.sqrt(state.covariance[order])
    return Peaks(
        p[:, 0],
        esd[:, 0],
        height(p, doublet),
        np.exp(p[:, 1]),
        p[:, 2],
        p[:, AREA],
        esd[:, AREA],
        state.significance[order],
    )


def _reduced(pattern: _Pattern, state: _State, curve: Float[np.ndarray, " n"]) -> float:
    model = curve + total(pattern.x, state.parameters, pattern.doublet)
    return float(np.mean((pattern.y - model) ** 2 / pattern.noise.variance_of(model)))
