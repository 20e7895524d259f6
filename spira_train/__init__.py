"""SPIRA continuous training: from recordings to a validated, packaged, registered model."""

__version__ = "0.1.0"
