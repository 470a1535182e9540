"""Files with edits: the new bytes in every format that is checked, and a write that is whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acclint.findings import Edit
from acclint.fix.edits import apply
from acclint.fix.tree import Refused
from acclint.source import decode, encode

_INDENTS: tuple[int | str | None, ...] = (1, 2, 4, None, "\t", 3)


def edited(data: bytes, filename: str, edits: Sequence[Edit]) -> bytes:
    """The bytes of a file after edits that do not touch. Everything else in it stays, byte for byte.

    Raises Refused where that cannot be promised: for a notebook whose formatting json cannot repeat.
    """
    if filename.lower().endswith(".ipynb"):
        return _notebook(data, edits)
    text = decode(data, filename)
    if encode(text, data, filename) != data:
        raise Refused("the file's encoding does not lead back to its bytes")
    try:
        return encode(apply(text, edits), data, filename)
    except UnicodeEncodeError as error:
        raise Refused("the rewrite cannot be written in the file's encoding") from error


def _notebook(data: bytes, edits: Sequence[Edit]) -> bytes:
    text = data.decode("utf-8-sig")
    document = json.loads(text)
    style = _style(document, text)
    cells: list[dict[str, Any]] = document.get("cells") or [
        cell for sheet in document["worksheets"] for cell in sheet["cells"]
    ]
    for number in {edit.place.cell for edit in edits if edit.place.cell is not None}:
        cell = cells[number - 1]
        key = "source" if "source" in cell else "input"
        source = cell[key]
        whole = apply(
            "".join(source) if isinstance(source, list) else source, [e for e in edits if e.place.cell == number]
        )
        cell[key] = whole.splitlines(keepends=True) if isinstance(source, list) else whole
    return data[: len(data) - len(text.encode())] + (json.dumps(document, **style[0]) + style[1]).encode()


def _style(document: Any, text: str) -> tuple[dict[str, Any], str]:
    """How json has to write a notebook to repeat its bytes."""
    body = text.rstrip("\r\n")
    for indent in _INDENTS:
        for ascii_only in (False, True):
            for separators in (None, (",", ":")):
                options: dict[str, Any] = {"indent": indent, "ensure_ascii": ascii_only, "separators": separators}
                if json.dumps(document, **options) == body:
                    return options, text[len(body) :]
    raise Refused("the formatting of the notebook's JSON would change")


class Unwritable(Exception):
    """A file that is not written, with the reason for the user."""


def write(path: Path, old: bytes, new: bytes) -> None:
    """Replace the content of a file at once: at any moment there is the old or the new one, whole.

    Mode, owner and extended attributes stay; symbolic links are followed. Raises Unwritable for a read-only file, for
    one that no longer holds `old`, and where the owner or a hard link could not be kept.
    """
    try:
        real = path.resolve(strict=True)
        before = real.stat()
        if not before.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(real, os.W_OK):
            raise Unwritable("the file is read-only")
        if before.st_nlink > 1:
            raise Unwritable("the file has several hard links, which an atomic write would part")
        handle, name = tempfile.mkstemp(prefix=f".{real.name}.", suffix=".acclint", dir=real.parent)
    except OSError as error:
        raise Unwritable(error.strerror or str(error)) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        shutil.copystat(real, temporary)
        os.utime(temporary)
        if hasattr(os, "chown") and (before.st_uid, before.st_gid) != (os.getuid(), os.getgid()):
            os.chown(temporary, before.st_uid, before.st_gid)
            temporary.chmod(stat.S_IMODE(before.st_mode))
        if real.read_bytes() != old:
            raise Unwritable("the file was changed in the meantime")
        temporary.replace(real)
    except OSError as error:
        raise Unwritable(error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
