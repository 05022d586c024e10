"""What an experiment shows: a table, a figure, and what they rest on."""

from __future__ import annotations

import math
from typing import Any

import msgspec

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 170, 36, 48
_COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#6d597a", "#bc8a00", "#333333")


class Figure(msgspec.Struct, frozen=True):
    """Lines over one axis: `series` maps a line's name to its points (x, y)."""

    x_title: str
    y_title: str
    series: dict[str, list[tuple[float, float]]]
    log_y: bool = False


class Report(msgspec.Struct, frozen=True):
    """The result of one experiment; `model` says in sentences what was assumed."""

    name: str
    title: str
    model: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    figure: Figure


def text(report: Report) -> str:
    """The report for a terminal."""
    cells = [report.header, *([_cell(value) for value in row] for row in report.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(report.header))]
    lines = [
        "  ".join(value.rjust(width) for value, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([report.title, "", *lines, "", report.model, ""])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def svg(report: Report) -> str:
    """The figure as a picture without dependencies."""
    figure = report.figure
    points = [point for line in figure.series.values() for point in line]
    scale = _Scale(points, figure.log_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-weight="bold">{_escape(report.title)}</text>',
        *_axes(scale, figure),
    ]
    for number, (name, line) in enumerate(figure.series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = _WIDTH - _RIGHT + 12, _TOP + 12 + 18 * number
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{_escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """From values to pixels."""

    def __init__(self, points: list[tuple[float, float]], log_y: bool) -> None:
        self.left, self.right = min(x for x, _ in points), max(x for x, _ in points)
        self._value = math.log10 if log_y else float
        positive = [y for _, y in points if y > 0 or not log_y]
        self.low = min(positive) if log_y else min(0.0, *(y for _, y in points))
        self.high = max(positive)

    def x(self, value: float) -> float:
        span = (self.right - self.left) or 1
        return _LEFT + (value - self.left) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._value(self.low), self._value(self.high)
        part = (self._value(max(value, self.low)) - low) / ((high - low) or 1)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)


def _axes(scale: _Scale, figure: Figure) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        f'<path d="M{_LEFT},{_TOP} V{bottom} H{right}" fill="none" stroke="black"/>',
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">'
        f"{_escape(figure.x_title)}</text>",
        f'<text x="14" y="{(_TOP + bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(_TOP + bottom) / 2})">{_escape(figure.y_title)}</text>',
    ]
    for value in (scale.left, scale.right):
        parts.append(
            f'<text x="{scale.x(value):.0f}" y="{bottom + 16}" text-anchor="middle">'
            f"{value:,.4g}</text>"
        )
    for value in (scale.low, scale.high):
        parts.append(
            f'<text x="{_LEFT - 6}" y="{scale.y(value) + 4:.0f}" text-anchor="end">'
            f"{value:,.4g}</text>"
        )
    return parts


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
