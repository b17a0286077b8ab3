"""Shell scripts as a service over SSH."""

__version__ = "0.1.0"
