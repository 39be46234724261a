"""Durations, ages and sizes as people read them, wherever they are shown."""

from __future__ import annotations


def seconds_text(seconds: float) -> str:
    """A duration as people read it.

    >>> seconds_text(0.42), seconds_text(75), seconds_text(7322)
    ('0.4 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def ago_text(seconds: float) -> str:
    """How long ago, in the words of a status.

    >>> ago_text(20), ago_text(200), ago_text(11_000), ago_text(300_000)
    ('just now', '3 min ago', '3 h ago', '3 days ago')
    """
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days ago"


def size_text(size: float) -> str:
    """Bytes, in powers of 1000.

    >>> size_text(999), size_text(1_500_000), size_text(256e6)
    ('999 B', '1.5 MB', '256 MB')
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    unit = units[0]
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"


def memory_text(mb: float) -> str:
    """MB of 10**6 bytes.

    >>> memory_text(48.3), memory_text(1234)
    ('48 MB', '1.2 GB')
    """
    return f"{mb:.0f} MB" if mb < 1000 else f"{mb / 1000:.1f} GB"


def counted(number: int, one: str, many: str = "") -> str:
    """
    >>> counted(1, "run"), counted(2000, "run"), counted(2, "entry", "entries")
    ('1 run', '2,000 runs', '2 entries')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
