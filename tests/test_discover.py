"""Which files are found: suffixes, excludes, git ignores, links, and paths that cannot be read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from acclint.discover import DEFAULT_EXCLUDES, Glob, discover
from acclint.settings import Finder, Overrides


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def found(*paths: str, overrides: Overrides | None = None, force_exclude: bool = False) -> list[str]:
    discovery = discover(paths or (".",), Finder(overrides or Overrides()), force_exclude)
    assert discovery.errors == ()
    return [target.name for target in discovery.targets]


def test_python_notebooks_and_pages_in_order(folder: Path) -> None:
    write(folder, "b.py", "a/z.ipynb", "a/b.pyi", "README.md", "data.json", "a/train.sh", "noext")
    assert found() == ["README.md", "a/b.pyi", "a/z.ipynb", "b.py"]


def test_a_file_given_by_name_is_taken_whatever_its_suffix(folder: Path) -> None:
    write(folder, "train.py.txt", "build/gen.py")
    assert found("train.py.txt", "build/gen.py") == ["build/gen.py", "train.py.txt"]


def test_a_file_given_twice_is_one_file(folder: Path) -> None:
    write(folder, "a.py")
    assert found("a.py", "./a.py", ".", str(folder / "a.py")) == ["a.py"]


def test_a_file_outside_the_working_directory_has_its_whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "a.py", "inner/b.py")
    monkeypatch.chdir(folder / "inner")
    assert found("..") == [(folder / "a.py").as_posix(), "b.py"]


@pytest.mark.parametrize("name", DEFAULT_EXCLUDES)
def test_default_excludes(folder: Path, name: str) -> None:
    write(folder, f"{name}/a.py", f"deep/{name}/a.py", "a.py")
    assert found() == ["a.py"]


def test_a_virtual_environment_of_any_name_is_left_out(folder: Path) -> None:
    write(folder, "my_env/lib/a.py", "a.py")
    (folder / "my_env" / "pyvenv.cfg").write_text("")
    assert found() == ["a.py"]


def test_a_folder_given_by_name_is_walked_though_it_is_excluded(folder: Path) -> None:
    write(folder, "build/gen.py", "build/build/deep.py")
    assert found("build") == ["build/gen.py"]
    assert found("build", force_exclude=True) == []


def test_exclude_replaces_and_extend_exclude_adds(folder: Path) -> None:
    write(folder, "a.py", "build/b.py", "old/c.py", "src/old/d.py", "src/e_test.py")
    assert found(overrides=Overrides(exclude=("old",))) == ["a.py", "build/b.py", "src/e_test.py"]
    assert found(overrides=Overrides(extend_exclude=("old", "*_test.py"))) == ["a.py"]
    assert found(overrides=Overrides(extend_exclude=("src/old",))) == ["a.py", "old/c.py", "src/e_test.py"]


def test_excludes_of_a_file_are_relative_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "sub/gen/a.py", "sub/src/gen/b.py")
    (folder / "sub" / "pyproject.toml").write_text('[tool.acclint]\nextend-exclude = ["gen/*"]\n')
    assert found() == ["sub/src/gen/b.py"]
    monkeypatch.chdir(folder / "sub")
    assert found() == ["src/gen/b.py"]


def test_force_exclude_leaves_out_files_given_by_name(folder: Path) -> None:
    write(folder, "a.py", "build/deep/gen.py", "src/old/b.py")
    (folder / "pyproject.toml").write_text('[tool.acclint]\nextend-exclude = ["src/old"]\n')
    names = ("a.py", "build/deep/gen.py", "src/old/b.py")
    assert found(*names) == sorted(names)
    assert found(*names, force_exclude=True) == ["a.py"]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a.py", "deep/a.py", True),
        ("*.py", "deep/a.py", True),
        ("deep/", "deep", True),
        ("./deep", "deep", True),
        ("deep/*", "deep/er/a.py", True),
        ("deep/*.py", "other/deep/a.py", False),
        ("**/deep/*.py", "other/deep/a.py", True),
        ("**/deep/*.py", "deep/a.py", True),
        ("/elsewhere/*", "deep/a.py", False),
        ("[ab].py", "a.py", True),
        ("dee", "deep", False),
    ],
)
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert Glob(pattern).matches(Path("/root") / path, Path("/root")) is matches


def test_an_absolute_glob() -> None:
    assert Glob("/root/deep/*").matches(Path("/root/deep/a.py"), Path("/other"))
    assert not Glob("deep/*").matches(Path("/root/deep/a.py"), Path("/other"))


# --- git ---


def test_what_git_ignores_is_left_out(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("wandb/\n*_local.py\n!keep_local.py\n")
    write(folder, "a.py", "wandb/run/b.py", "x_local.py", "keep_local.py", "sub/y_local.py", "sub/new.py")
    assert found() == ["a.py", "keep_local.py", "sub/new.py"]
    assert found("sub") == ["sub/new.py"]
    assert found("x_local.py") == ["x_local.py"]


def test_a_tracked_file_counts_though_a_pattern_matches(folder: Path) -> None:
    git(folder, "init", "-q")
    write(folder, "x_local.py")
    git(folder, "add", "x_local.py")
    (folder / ".gitignore").write_text("*_local.py\n")
    assert found() == ["x_local.py"]


def test_a_folder_that_git_ignores_is_walked_if_it_is_given(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("outputs/\n")
    write(folder, "outputs/run/train.py")
    assert found() == []
    assert found("outputs") == ["outputs/run/train.py"]


def test_a_repository_inside_has_its_own_ignores(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / "inner").mkdir()
    git(folder / "inner", "init", "-q")
    (folder / "inner" / ".gitignore").write_text("b.py\n")
    write(folder, "inner/a.py", "inner/b.py", "b.py")
    assert found() == ["b.py", "inner/a.py"]


def test_names_with_odd_characters(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("ignored*\n")
    write(folder, "ein übler name.py", 'ignored "quoted"\n.py', "tab\t.py")
    assert found() == ["ein übler name.py", "tab\t.py"]


def test_without_git_nothing_is_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("a.py\n")
    write(folder, "a.py")
    monkeypatch.setenv("PATH", "")
    assert found() == ["a.py"]


def test_the_repository_of_a_hook_is_not_mistaken_for_that_of_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        git(folder / name, "init", "-q")
    (folder / "one" / ".gitignore").write_text("a.py\n")
    write(folder, "one/a.py", "two/a.py")
    monkeypatch.setenv("GIT_DIR", str(folder / "two" / ".git"))
    assert found("one") == []


# --- links and paths that cannot be read ---


def test_a_loop_of_links_ends(folder: Path) -> None:
    write(folder, "a/b.py")
    (folder / "a" / "loop").symlink_to(folder / "a", target_is_directory=True)
    (folder / "a" / "self.py").symlink_to("self.py")
    (folder / "a" / "gone.py").symlink_to("nowhere.py")
    assert found() == ["a/b.py"]
    assert found("a/loop") == ["a/loop/b.py"]


def test_a_link_and_its_file_are_one_file(folder: Path) -> None:
    write(folder, "a.py")
    (folder / "z.py").symlink_to("a.py")
    assert found() == ["a.py"]


@pytest.mark.parametrize("name", ["nope.py", "nope/deeper", "a.py/deeper", "bad\0name", "x" * 5000, "self.py"])
def test_a_path_that_cannot_be_read_is_a_line_and_the_others_are_found(folder: Path, name: str) -> None:
    write(folder, "a.py")
    (folder / "self.py").symlink_to("self.py")
    discovery = discover((name, "a.py"), Finder())
    assert [target.name for target in discovery.targets] == ["a.py"]
    (line,) = discovery.errors
    assert line.startswith(f"{name}: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_a_line(folder: Path) -> None:
    write(folder, "a.py", "closed/b.py")
    (folder / "closed").chmod(0)
    try:
        discovery = discover((".",), Finder())
    finally:
        (folder / "closed").chmod(0o700)
    assert [target.name for target in discovery.targets] == ["a.py"]
    assert discovery.errors == ("closed: cannot be read: permission denied",)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_that_is_found_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.py")
    write(folder, "a.py")
    assert found() == ["a.py"]
