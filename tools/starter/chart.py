"""A training record as an image: one curve per column of a CSV file, drawn with Pillow."""

import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 900, 420, 48
INKS = ("#1f5fbf", "#c2410c", "#15803d", "#7e22ce")


def draw(table: Path, image: Path) -> None:
    """Draws every column after the third over the first, each on its own logarithmic or linear scale.

    Args:
        table: a CSV file with a header; the columns are step, seconds, samples, then what was measured.
        image: the PNG file to write.
    """
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    if len(rows) < 2:
        return
    steps = [float(row[0]) for row in rows]
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((MARGIN, MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN), outline="#999999")
    for number, name in enumerate(header[3:]):
        values = [float(row[3 + number]) for row in rows]
        logarithmic = min(values) > 0 and max(values) > 3 * min(values)
        scaled = [math.log(value) for value in values] if logarithmic else values
        low, high = min(scaled), max(scaled)
        points = [
            (
                MARGIN + (step - steps[0]) / max(steps[-1] - steps[0], 1) * (WIDTH - 2 * MARGIN),
                HEIGHT - MARGIN - (value - low) / max(high - low, 1e-12) * (HEIGHT - 2 * MARGIN),
            )
            for step, value in zip(steps, scaled, strict=True)
        ]
        ink = INKS[number % len(INKS)]
        pen.line(points, fill=ink, width=2)
        scale = "logarithmic" if logarithmic else "linear"
        label = f"{name}: {values[0]:.4g} -> {values[-1]:.4g}  (from {min(values):.4g} to {max(values):.4g}, {scale})"
        pen.text((MARGIN + 260 * (number % 3), 8 + 16 * (number // 3)), label, fill=ink)
    pen.text((WIDTH // 2 - 60, HEIGHT - MARGIN + 14), f"steps {steps[0]:.0f} to {steps[-1]:.0f}", fill="#333333")
    canvas.save(image)
