"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random model."""
    from tests.tiny import write_model

    return write_model(tmp_path_factory.mktemp("tiny"))
