"""Where the user's code is: which files are the user's, and the line of them that runs."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import torch

_LIBRARIES = tuple(
    os.path.abspath(folder) + os.sep
    for folder in {
        str(Path(__file__).parents[1]),
        str(Path(torch.__file__).parent),
        *(
            path
            for name, path in sysconfig.get_paths().items()
            if name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
    }
)


@functools.cache
def is_project_file(filename: str) -> bool:
    """Code of the user: no library, no torch, not the instruments."""
    path = os.path.abspath(filename)
    folders = Path(path).parts
    library = path.startswith(_LIBRARIES) or "site-packages" in folders or "dist-packages" in folders
    return not filename.startswith("<") and not library


class Places:
    """The frames of the user's code, innermost first; `script` is the path of the script that runs."""

    def __init__(self) -> None:
        self.script = ""

    def is_user(self, filename: str) -> bool:
        return filename == self.script or is_project_file(filename)

    def frames(self) -> Iterator[FrameType]:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self.is_user(frame.f_code.co_filename):
                yield frame
            frame = frame.f_back

    def place(self) -> tuple[str, int]:
        """(file, line) of the innermost user frame; the file is empty for the script itself."""
        for frame in self.frames():
            name = frame.f_code.co_filename
            return ("" if name == self.script else name), frame.f_lineno
        return "", 0

    def site(self) -> tuple[int, ...]:
        """The lines of the innermost four frames; of a function that calls itself, the innermost one only."""
        lines: dict[CodeType, int] = {}
        for frame in self.frames():
            lines.setdefault(frame.f_code, frame.f_lineno)
            if len(lines) == 4:
                break
        return tuple(lines.values())
