"""What TorchServe itself takes: it reads the request, and answers at once."""

from typing import Any


class EmptyHandler:
    """The least that TorchServe calls."""

    def initialize(self, context: Any) -> None:
        """Nothing to load."""

    def handle(self, data: list[Any], context: Any) -> list[str]:
        """One empty JSON answer each."""
        return ["{}"] * len(data)
