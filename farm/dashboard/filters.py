"""Numbers, times and sizes as people read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from farm.domain.estimate import SecondsRange
from farm.domain.media import MediaMetadata

MINUTE, HOUR, DAY = 60, 3600, 86400


def number(value: float | None, digits: int = 0) -> str:
    """1234567 → ``1,234,567``; what is not known is a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def compact(value: float | None) -> str:
    """1234567 → ``1.2 M``: for tiles, where the exact number does not matter."""
    if value is None:
        return "–"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:,.1f} {unit}" if scaled < 100 else f"{scaled:,.0f} {unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def between_durations(seconds: SecondsRange | None) -> str:
    """``20 min to 1 h``: the two ends of a range, or one of them where they look alike."""
    if seconds is None:
        return "–"
    low, high = duration(seconds.low), duration(seconds.high)
    return low if low == high else f"{low} to {high}"


def duration(seconds: float | None) -> str:
    """4000 → ``1 h 6 min``: at most two units."""
    if seconds is None:
        return "–"
    left = max(0.0, float(seconds))
    if left < 1:
        return f"{left * 1000:.0f} ms"
    if left < 10:
        return f"{left:.1f} s"
    whole = round(left)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return _two(whole, MINUTE, "min", 1, "s")
    if whole < DAY:
        return _two(whole, HOUR, "h", MINUTE, "min")
    return _two(whole, DAY, "d", HOUR, "h")


def _two(value: int, large: int, name: str, small: int, second: str) -> str:
    rest = value % large // small
    return f"{value // large} {name}" + (f" {rest} {second}" if rest else "")


def ago(moment: datetime | None) -> str:
    """How long since that time."""
    if moment is None:
        return "–"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "just now" if seconds < 5 else f"{duration(seconds)} ago"


def between(start: datetime | None, end: datetime | None) -> str:
    """The time from one moment to another; to now if there is no other."""
    if start is None:
        return "–"
    return duration(((end or datetime.now(UTC)) - start).total_seconds())


def clock(moment: datetime | None) -> str:
    """A moment, to the second, in UTC."""
    return "–" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: float | None) -> str:
    """Bytes: 2621440 → ``2.5 MiB``."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def short(text: str) -> str:
    """An id by its kind and its last eight digits, which are random: enough to distinguish it in a list."""
    kind, _, digits = text.partition("_")
    return f"{kind}…{digits[-8:]}" if len(digits) == 32 else text


def percent(part: float | None, whole: float | None) -> str:
    """A share without decimals; never 100 % of what is not whole."""
    if not whole or part is None:
        return "0 %"
    return f"{min(99, int(100 * part / whole)) if part < whole else 100} %"


def pretty(value: Any) -> str:
    """JSON, indented."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def plural(count: float, one: str, many: str | None = None) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def element(media_type: str) -> str:
    """The HTML element that shows a file: ``img``, ``video`` or ``audio``. Animated images are images here."""
    kind = media_type.partition("/")[0]
    return kind if kind in ("video", "audio") else "img"


def about(metadata: MediaMetadata) -> str:
    """What is known of a file's content, in a line: ``1024 × 576 · 5.4 s · 24 fps``."""
    parts = []
    if "width" in metadata:
        parts.append(f"{metadata['width']} × {metadata['height']}")
    if "seconds" in metadata:
        parts.append(f"{float(metadata['seconds']):.3g} s")
    if "fps" in metadata:
        parts.append(f"{float(metadata['fps']):.3g} fps")
    if "sample_rate" in metadata:
        parts.append(f"{float(metadata['sample_rate']) / 1000:g} kHz")
    return " · ".join(parts)


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "number": number,
    "compact": compact,
    "duration": duration,
    "between_durations": between_durations,
    "ago": ago,
    "between": between,
    "clock": clock,
    "bytes": size,
    "short": short,
    "percent": percent,
    "pretty": pretty,
    "plural": plural,
    "element": element,
    "about": about,
}
