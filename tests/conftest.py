from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import fitting_torchvision

fitting_torchvision.install()
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference() -> Path:
    """The answers of the original programs: `$CAMRT_REFERENCE`, else `../shared/reference`."""
    named = os.environ.get("CAMRT_REFERENCE")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (set CAMRT_REFERENCE)")
    return folder
