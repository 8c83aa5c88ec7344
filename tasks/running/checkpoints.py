"""Where the checkpoints of a stage lie, which of them may be used, and what is said about the others."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignflow import checkpoint, distributed
from alignflow.checkpoint import State
from tasks.paths import home
from tasks.running.hardware import kind
from tasks.running.provenance import code, hashes, libraries

ORIGIN = "origin.json"
NAMED = 3  # differences that a line names


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one stage.

    Their folder follows from everything that decides later bytes, so none of another run is ever used.
    """

    stage: str
    results: Mapping[str, str]
    """Settings, and hashes of the data, by name: another value is another result."""
    means: Mapping[str, str]
    """Code, libraries, kind of device and number of processes: another value may change the last digits."""

    @property
    def key(self) -> str:
        """Name of the stage's run, the same for the same settings and data."""
        return f"{self.stage}-{_hash(self.results)}"

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return _all() / self.key / _hash(self.means)

    def load(self) -> tuple[State | None, str]:
        """Return the newest good state, the same in all processes, and a line where there is something to say."""
        if distributed.is_main():
            for place in (_all(), home() / "reference_logps"):
                checkpoint.tidy(place)
        found = checkpoint.load(self.folder) if distributed.is_main() else None
        path = distributed.gather(found.path if found else None)[0]
        if found is None:
            return (checkpoint.read(path) if path else None), ""
        for broken in found.broken:
            broken.unlink(missing_ok=True)
        if found.faults:
            where = "goes on from the one before" if path else "starts from the beginning"
            return found.state, f"broken checkpoint ({'; '.join(found.faults)}): {where}"
        return found.state, "" if path else self._others()

    def save(self, state: State) -> None:
        """Add a state."""
        origin = self.folder / ORIGIN
        if not origin.exists():
            content = json.dumps({**self.results, **self.means}, indent=2)
            checkpoint.replace(origin, lambda file: file.write(content.encode()))
        checkpoint.save(self.folder, state)

    def exist(self) -> bool:
        """Return whether there is a good one."""
        return checkpoint.load(self.folder).path is not None

    def remove(self) -> None:
        """Remove all of this stage's settings and data: its result is there."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _others(self) -> str:
        """Say why the checkpoint of another run of this stage is not used; empty where there is none."""
        mine, found = {**self.results, **self.means}, list[tuple[int, str]]()
        for origin in _all().glob(f"{self.stage}-{'[0-9a-f]' * 16}/*/{ORIGIN}"):
            theirs: dict[str, str] = json.loads(origin.read_text())
            names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
            found.append((len(names), ", ".join(_difference(n, mine, theirs) for n in names[:NAMED])))
        if not found:
            return ""
        count, named = min(found)
        more = f" and {count - NAMED} more" if count > NAMED else ""
        return (
            f"starts from the beginning: the checkpoint that is there has another {named}{more}; it is kept, and the "
            "same settings, data, code, libraries, device and number of processes as then continue it"
        )


def checkpoints_of(name: str, used: Mapping[str, Mapping[str, object]], inputs: Sequence[str]) -> Checkpoints:
    """Return the checkpoints of a stage.

    Args:
        name: the stage's name, with its item.
        used: its settings by section and key.
        inputs: its files and folders.
    """
    settings = {
        f"{section}.{key}": json.dumps(value, sort_keys=True, default=str)
        for section, keys in used.items()
        for key, value in keys.items()
    }
    means = {
        **{f"code {path}": digest for path, digest in code(name.partition("@")[0]).items()},
        **{f"version of {library}": version for library, version in libraries().items()},
        "device": kind(),
        "number of processes": str(distributed.world()),
    }
    return Checkpoints(name, {**settings, **hashes(inputs)}, means)


def _all() -> Path:
    return home() / "checkpoints"


def _hash(named: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def _difference(name: str, mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Return a name with both values, where these are no hashes."""
    values = [named.get(name, "none") for named in (theirs, mine)]
    return name if any(len(value) == 64 for value in values) else f"{name} ({values[0]}, now {values[1]})"
