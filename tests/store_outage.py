"""An artifact store that does not answer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from shared.artifacts import ArtifactStore


class NoConnection(Exception):
    """No OSError, as little as botocore's errors are."""


ERRORS = (PermissionError(13, "forbidden"), OSError("slow down"), NoConnection("no endpoint"))


def interrupt(
    store: ArtifactStore,
    patched: pytest.MonkeyPatch,
    error: Exception = ERRORS[0],
    *,
    calls: Callable[[int], bool] = lambda _: True,
) -> None:
    """From now on those of the calls to the store's client fail that are chosen by their number, from 0 on."""
    numbers = count()

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if calls(next(numbers)):
                raise error
            return function(*args, **options)

        return call

    for name in ("ls", "info", "open", "cat_file", "get_file", "put_file", "makedirs", "rm_file", "rm"):
        patched.setattr(store._client.fs, name, failing(getattr(store._client.fs, name)))
