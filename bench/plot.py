"""Small line charts as SVG, readable on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 300, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 34, 42
LEGEND = 26
COLOURS = ("#3b82f6", "#f97316", "#10b981")
# Where a page cannot say that it is dark, this grey is told from either.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #808080 }
.title { font-weight: 600 }
.grid { stroke: #808080; stroke-opacity: .25 }
.line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: light) { text { fill: #404040 } }
@media (prefers-color-scheme: dark) { text { fill: #c8c8c8 } }
"""


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    across: str
    """What `places` are."""
    up: str
    """What the values are, with their unit."""
    places: Sequence[float]
    lines: Sequence[tuple[str, Sequence[float]]]
    """Of each line its name and a value for each place."""


def svg(rows: Sequence[Sequence[Chart]]) -> str:
    """Charts in rows. A name has the same colour in all of a row, and is explained below it."""
    width = max(map(len, rows)) * WIDTH
    height = len(rows) * (HEIGHT + LEGEND)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">'
        ),
        f"<style>{STYLE}</style>",
    ]
    for row, charts in enumerate(rows):
        y = row * (HEIGHT + LEGEND)
        for column, chart in enumerate(charts):
            parts.append(f'<g transform="translate({column * WIDTH} {y})">')
            parts += _chart(chart)
            parts.append("</g>")
        for number, (name, _) in enumerate(charts[0].lines):
            x = LEFT + number * 130
            parts.append(
                f'<path class="line" stroke="{COLOURS[number]}" d="M{x} {y + HEIGHT}h22"/>'
                f'<text x="{x + 28}" y="{y + HEIGHT + 4}">{escape(name)}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _chart(chart: Chart) -> list[str]:
    step = _step(max(max(values) for _, values in chart.lines) / 4)
    most = step * math.ceil(max(max(values) for _, values in chart.lines) / step)
    far = max(chart.places)

    def x(place: float) -> float:
        return LEFT + place / far * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (1 - value / most) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<text class="title" x="{LEFT}" y="16">{escape(chart.title)}</text>',
        (
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
            f"{escape(chart.across)}</text>"
        ),
        (
            f'<text transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"'
            f' text-anchor="middle">{escape(chart.up)}</text>'
        ),
    ]
    for number in range(round(most / step) + 1):
        value = number * step
        parts.append(
            f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    parts += [
        f'<text x="{x(place):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{place:,g}</text>'
        for place in chart.places
    ]
    for (_, values), colour in zip(chart.lines, COLOURS, strict=False):
        points = [f"{x(p):.1f} {y(v):.1f}" for p, v in zip(chart.places, values, strict=True)]
        parts.append(f'<path class="line" stroke="{colour}" d="M{"L".join(points)}"/>')
        for point in points:
            cx, cy = point.split()
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"/>')
    return parts


def _step(least: float) -> float:
    """The next of 1, 2, 5, 10, ... that is not below `least`."""
    ten = 10.0 ** math.floor(math.log10(least or 1))
    return next(ten * factor for factor in (1, 2, 5, 10) if ten * factor >= least)
