"""Fixtures that more than one folder of tests uses, and the time that a test may take."""

import signal
from collections.abc import Generator
from pathlib import Path

import pytest

LIMIT_SECONDS = 600  # on a busy machine, too; fixtures included


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that waits for what never comes fails where it waits; one that trains for minutes may."""
    limit = 0 if item.get_closest_marker("slow") or item.get_closest_marker("real_base") else LIMIT_SECONDS

    def fail(*_: object) -> None:
        pytest.fail(f"not done within {limit} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(limit)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random model."""
    from tests.tiny import write_model

    return write_model(tmp_path_factory.mktemp("tiny"))
