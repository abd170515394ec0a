"""The error of this room."""

from __future__ import annotations

__all__ = ["PayloadError"]


class PayloadError(ValueError):
    """A provider payload that contradicts itself or cannot be read.

    `path` is where in the payload, such as "usage.prompt_tokens_details.cached_tokens"; "" is the
    payload as a whole. The message says what is wrong there.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message

    def __reduce__(self) -> tuple[type[PayloadError], tuple[str, str]]:
        return (PayloadError, (self.path, self.message))
