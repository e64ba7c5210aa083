"""Watching a live model: projections on refusal directions, read and never changed."""

__all__: list[str] = []
