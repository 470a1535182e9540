"""What slices measured, kept on disk: an equal slice is run again only under another acclint, torch or Python.

No torch is imported here, and where everything is found none has to be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from acclint import __version__

FOLDER = ".acclint_cache"
KEPT = 30 * 24 * 3600  # seconds without use after which an entry is removed
_ASK = """\
import sys
sys.path[:] = filter(None, sys.path)  # what lies in the working directory is not Python's
import importlib.metadata
print(importlib.metadata.version("torch"), sys.version)
"""


class Kept:
    """A folder with one JSON file per measured slice, named by the hash of everything that decides it.

    `versions` stands for acclint, torch and Python; see `versions_of`. What cannot be read is measured again, and what
    cannot be written is not kept.
    """

    def __init__(self, folder: str | os.PathLike[str], versions: str) -> None:
        self.root = Path(folder)
        self.folder = self.root / "slices"
        self.versions = versions

    def name(self, *parts: Any) -> str:
        """The name of the entry that these JSON data decide."""
        text = json.dumps([self.versions, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, name: str) -> Any:
        """The data of an entry; None if there is none."""
        path = self.folder / f"{name}.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            os.utime(path)
        except (OSError, ValueError):
            return None
        return data

    def put(self, name: str, data: Any) -> None:
        """Keep the data of an entry, in one step: another acclint may be reading."""
        with contextlib.suppress(OSError):
            self._make_folder()
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                written = Path(scratch, "entry")
                written.write_text(json.dumps(data), encoding="utf-8")
                written.replace(self.folder / f"{name}.json")

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        self.folder.mkdir(parents=True)
        ignored = self.root / ".gitignore"
        if not ignored.exists():
            ignored.write_text("*\n", encoding="utf-8")

    def tidy(self) -> None:
        """Remove what nobody has asked for in a month."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < time.time() - KEPT:
                        path.unlink()


def versions_of(python: str | os.PathLike[str]) -> str:
    """acclint and its files, torch and Python of an interpreter, as one text; empty if they cannot be had."""
    try:
        asked = subprocess.run([os.fspath(python), "-c", _ASK], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    build = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{__version__} {build} {asked.stdout.strip()}"
