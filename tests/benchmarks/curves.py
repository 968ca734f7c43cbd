"""Curves as an SVG that any browser and any README shows.

svg([Panel("held-out PSNR, dB", "step", {"vae": [(500, 26.4), …]}, {"goal": 28})])
"""

import math
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 280  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 28, 40, 44
COLORS = ("#1f6feb", "#d1542c", "#2f8f4e", "#8250df")
MUTED, GRID = "#6e7781", "#d8dee4"
Curve = list[tuple[float, float]]


@dataclass
class Panel:
    """One plot.

    Attributes:
        title, across: what is up and what is across.
        curves: by name.
        marks: horizontal lines, by name.
    """

    title: str
    across: str
    curves: dict[str, Curve]
    marks: dict[str, float] = field(default_factory=dict)

    def draw(self, left: int) -> list[str]:
        points = [point for curve in self.curves.values() for point in curve]
        xs, ys = zip(*points, strict=True)
        ys = (*ys, *self.marks.values())
        x_ticks, y_ticks = ticks(0, max(xs)), ticks(min(ys), max(ys))

        def place(x: float, y: float) -> tuple[float, float]:
            right, high = x_ticks[-1], y_ticks[-1] - y_ticks[0]
            across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
            over = HEIGHT - BOTTOM - (y - y_ticks[0]) / high * down
            return round(left + LEFT + x / right * across, 1), round(over, 1)

        lines = [text(left + LEFT, 20, self.title, weight="600")]
        for y in y_ticks:
            (x1, at), (x2, _) = place(0, y), place(x_ticks[-1], y)
            lines.append(line(x1, at, x2, at, GRID))
            lines.append(text(x1 - 6, at + 4, f"{y:g}", MUTED, "end"))
        for x in x_ticks:
            at, low = place(x, y_ticks[0])
            lines.append(text(at, low + 16, f"{x:,g}", MUTED, "middle"))
        middle = place(x_ticks[-1] / 2, y_ticks[0])
        lines.append(text(middle[0], middle[1] + 34, self.across, MUTED, "middle"))
        for name, y in self.marks.items():
            (x1, at), (x2, _) = place(0, y), place(x_ticks[-1], y)
            lines.append(line(x1, at, x2, at, MUTED, "4 3"))
            lines.append(text(x2, at - 4, name, MUTED, "end"))
        for number, (name, curve) in enumerate(self.curves.items()):
            color = COLORS[number % len(COLORS)]
            path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
            lines.append(
                f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
            )
            x, y = place(*curve[-1])
            lines.append(text(x, y - 8, name, color, "end"))
        return lines


def svg(panels: list[Panel]) -> str:
    """Panels side by side."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        parts += panel.draw(number * WIDTH)
    return "\n".join([*parts, "</svg>", ""])


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from just below to just above."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(k * step, 9) for k in range(first, max(last, first + 1) + 1)]


def line(x1: float, y1: float, x2: float, y2: float, color: str, dashes: str = "none") -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" '
        f'stroke-dasharray="{dashes}"/>'
    )


def text(
    x: float, y: float, words: str, color: str = "#1f2328", anchor: str = "start", weight: str = ""
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{x}" y="{y}" fill="{color}" text-anchor="{anchor}"{bold}>{escape(words)}</text>'
    )
