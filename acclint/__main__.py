"""`python -m acclint` and the `acclint` command."""

from __future__ import annotations


def main() -> None:
    from acclint.cli import cli

    cli(prog_name="acclint")


if __name__ == "__main__":
    main()
