"""What a server takes on at most."""

from __future__ import annotations

from dataclasses import dataclass

from camrt.errors import CamrtError


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        max_batch: The most images that are computed at once.
        max_delay: How long a batch waits for requests that are on their way, in seconds.
        max_queue: The most requests under way at once, and the most images that wait for a model. What comes beyond is
            answered with 503.
        timeout: How long a request may take once its body is there, in seconds.
        body_timeout: How long the head of a request, and then its body, may take to arrive, in seconds.
        max_upload: The most bytes of a body.
        max_held: The most bytes of all bodies that are held at once.
        max_connections: The most open connections.

    Raises:
        CamrtError: A limit is not positive.
    """

    max_batch: int = 8
    max_delay: float = 0.005
    max_queue: int = 128
    timeout: float = 30
    body_timeout: float = 15
    max_upload: int = 32 << 20
    max_held: int = 256 << 20
    max_connections: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0 and not (name == "max_delay" and value == 0):
                raise CamrtError(f"found {name} {value}, expected more than 0")
        if self.max_held < self.max_upload:
            object.__setattr__(self, "max_held", self.max_upload)
