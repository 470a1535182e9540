"""Which files: the paths given, the folders walked, what is excluded and what git ignores."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acclint.settings import Finder, Settings

SUFFIXES = frozenset({".py", ".pyi", ".pyw", ".ipynb", ".md"})

DEFAULT_EXCLUDES = (
    ".acclint_cache",
    ".bzr",
    ".direnv",
    ".eggs",
    ".git",
    ".hg",
    ".hypothesis",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".nox",
    ".pytest_cache",
    ".ruff_cache",
    ".svn",
    ".tox",
    ".venv",
    "__pycache__",
    "__pypackages__",
    "build",
    "dist",
    "node_modules",
    "site-packages",
    "venv",
)


@dataclass(frozen=True)
class Glob:
    """A pattern of a file or folder. Without a slash it is matched against the name alone, else against the path
    relative to `base` (default: the folder of the settings), where `*` also stands for slashes, as in ruff."""

    pattern: str
    base: Path | None = None

    def matches(self, path: Path, root: Path) -> bool:
        pattern = self.pattern.rstrip("/").removeprefix("./")
        if "/" not in pattern:
            return bool(_regex(pattern).match(path.name))
        if Path(pattern).is_absolute():
            return bool(_regex(pattern).match(path.as_posix()))
        try:
            relative = path.relative_to(self.base or root).as_posix()
        except ValueError:
            return False
        return bool(_regex(pattern).match("/" + relative if pattern.startswith("**/") else relative))


@lru_cache(maxsize=512)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


@dataclass(frozen=True)
class Target:
    """One file to look at. `name` is how to show it: relative to the working directory where that is possible."""

    path: Path
    name: str
    settings: Settings


@dataclass(frozen=True)
class Discovery:
    """The files found, sorted by name, and a line for each path that could not be read."""

    targets: tuple[Target, ...]
    errors: tuple[str, ...]


def discover(paths: Sequence[str], finder: Finder, force_exclude: bool = False) -> Discovery:
    """Walk `paths`. A file given by name is looked at whatever its suffix, and though it may be excluded or ignored by
    git, unless `force_exclude`. Raises Problem for wrong settings."""
    errors: list[str] = []
    found: dict[Path, Target] = {}
    for given in paths:
        path = Path(os.path.abspath(given))
        try:
            is_folder = path.is_dir()
            if not is_folder:
                path.stat()
        except (OSError, ValueError) as error:
            errors.append(f"{given}: {reason(error)}")
            continue
        if force_exclude and is_excluded(path, finder):
            continue
        files = _walk(path, finder, errors) if is_folder else iter([path])
        for file in files:
            # The same file given twice, or reached through a link, is one file.
            real = Path(os.path.realpath(file))
            if real not in found:
                found[real] = Target(file, shown(file), finder.find(file.parent))
    targets = sorted(found.values(), key=lambda target: target.name)
    return Discovery(tuple(targets), tuple(errors))


def reason(error: OSError | ValueError) -> str:
    """What an operating system's error means to somebody who gave the path."""
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def shown(path: Path) -> str:
    """The path as it is shown: relative to the working directory if it lies below, with forward slashes."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _excluded(path: Path, settings: Settings) -> bool:
    return any(glob.matches(path, settings.root) for glob in settings.exclude)


def is_excluded(path: Path, finder: Finder) -> bool:
    """Whether the path or a folder above it, up to the root of its settings, is excluded."""
    settings = finder.find(path if path.is_dir() else path.parent)
    chain = [path, *path.parents]
    inside = [item for item in chain if item != settings.root and settings.root in item.parents]
    return any(_excluded(item, settings) for item in inside or chain[:1])


def _walk(top: Path, finder: Finder, errors: list[str]) -> Iterator[Path]:
    """The files below `top` that are neither excluded nor ignored by git, in a fixed order."""
    ignored = _ignored_by_git(top)

    def failed(error: OSError) -> None:
        errors.append(f"{shown(Path(error.filename))}: {reason(error)}")

    # Links to folders are not followed, so a loop of links cannot catch the walk.
    for folder, folders, files in os.walk(top, onerror=failed):
        here = Path(folder)
        if here != top and _holds((here / ".git").exists):
            ignored |= _ignored_by_git(here)
        settings = finder.find(here)
        folders[:] = sorted(
            name
            for name in folders
            if here / name not in ignored
            and not _excluded(here / name, settings)
            and not _holds((here / name / "pyvenv.cfg").exists)
        )
        for name in sorted(files):
            path = here / name
            if (
                path.suffix in SUFFIXES
                and path not in ignored
                and not _excluded(path, settings)
                and _holds(path.is_file)
            ):
                yield path


def _holds(question: Callable[[], bool]) -> bool:
    """The answer about a path; False where nothing may be seen, which is told when the walk comes to it."""
    try:
        return question()
    except OSError:
        return False


def _ignored_by_git(top: Path) -> set[Path]:
    """The files and folders below `top` that git ignores; empty without git, outside a repository, or where `top`
    itself is ignored, since then it was asked for on purpose."""
    # A hook runs with GIT_DIR and the like set for its own repository, which need not be the one of `top`.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--directory", "-z"]
    try:
        done = subprocess.run(
            command, cwd=top, env=environment, capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
    except OSError:
        return set()
    if done.returncode != 0:
        return set()
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    if "./" in names:
        return set()
    return {top / name.rstrip("/") for name in names}
