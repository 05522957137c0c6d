"""Files of one JSON object per line that a kill may cut off anywhere."""

from __future__ import annotations

import os
from pathlib import Path


def whole_lines(path: Path) -> list[str]:
    """The lines of a file without empty ones and without a last one that was cut off."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines[:-1] if line]


def cut_partial_line(path: Path) -> None:
    """Remove a last line that was cut off, so that the next one starts on a line of its own."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)


def append_line(path: Path, line: str) -> None:
    """Add a line, and have it on disk before going on."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
