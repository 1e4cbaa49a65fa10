"""A page and pictures about one or several runs."""

from .writer import write_report

__all__ = ["write_report"]
