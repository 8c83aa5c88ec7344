"""The adapters from which both sides start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import datasets

    from tests.oracle.sides import write_roles

    datasets.disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)  # TRL is told to use the CPU
        yield write_roles(tmp_path_factory.mktemp("oracle"))
    datasets.enable_progress_bars()
