"""acclint: finds gradient-accumulation mistakes in PyTorch training code."""

__version__ = "0.1.0"


class Problem(Exception):
    """acclint itself cannot work as asked: a bad option, setting or path. The text is one line and names the remedy."""
