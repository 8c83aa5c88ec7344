"""The base model: finds it, converts it once if necessary, and identifies its content."""

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin")
CHAT_TEMPLATES = Path(__file__).parents[1] / "chat_templates"
IDENTIFYING = (*WEIGHTS, "config.json", "tokenizer*", "*.model", "vocab.*", "merges.txt", "chat_template*")


class BaseModelError(ValueError):
    """The base model cannot be found or read."""


class ChatTemplateError(ValueError):
    """The chosen chat template cannot be found or read."""


class BaseChanged(ValueError):
    """The base model or its chat template has changed."""


@dataclass(frozen=True)
class BaseIdentity:
    """Identity of a base model, independent of the machine."""

    model: str
    """As the user named it."""
    load_from: str
    """Hub id or folder that transformers loads."""
    revision: str | None
    """Commit on the Hub."""
    sha256: str
    """Hash of all files of the model: weights, configuration, tokenizer."""
    files: dict[str, str]
    """Hash of each file."""
    weight_bytes: int
    chat_template: str | None = None
    """Name as the user wrote it; None is the model's own."""
    chat_template_text: str | None = None
    """Text of the template, so that every later stage and every saved adapter uses the same."""


def identify(model: str, revision: str | None, *, converted: Path, chat_template: str | None = None) -> BaseIdentity:
    """Make a base model available on this machine and return its identity.

    Args:
        model: a folder, ``package:MODULE`` for a GGUF file inside an installed Python package, or a Hub id.
        revision: Hub ids only.
        converted: folder of converted models, by name.
        chat_template: name of one in alignflow/chat_templates, or a .jinja file; None keeps the model's own.

    Raises:
        BaseModelError: the model does not exist.
        ChatTemplateError: the template does not exist.
    """
    text = None if chat_template is None else read_template(chat_template)
    return replace(_find(model, revision, converted), chat_template=chat_template, chat_template_text=text)


def read_template(chosen: str) -> str:
    """Return the text of a chat template.

    Raises:
        ChatTemplateError: it is neither a name nor a readable file.
    """
    names = template_names()
    path = CHAT_TEMPLATES / f"{chosen}.jinja" if chosen in names else Path(chosen)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ChatTemplateError(
            f"chat template {chosen!r} is not a readable file and not one of {', '.join(names)}"
        ) from error


def template_names() -> list[str]:
    """Return the names of the templates in alignflow/chat_templates."""
    return sorted(path.stem for path in CHAT_TEMPLATES.glob("*.jinja"))


def verify(identity: BaseIdentity, *, converted: Path) -> None:
    """Check that the model on this machine is the identified one; converts or downloads it if it is missing.

    Raises:
        BaseChanged: its content or its chat template has changed.
    """
    found = identify(identity.model, identity.revision, converted=converted, chat_template=identity.chat_template)
    if found.chat_template_text != identity.chat_template_text:
        raise BaseChanged(f"chat template {identity.chat_template} is not the one this pipeline started from")
    if found.sha256 != identity.sha256:
        changed = sorted(
            n for n in found.files.keys() | identity.files.keys() if found.files.get(n) != identity.files.get(n)
        )
        raise BaseChanged(
            f"base model {identity.model} is not the one this pipeline started from (changed: {', '.join(changed)})"
        )


def save_identity(identity: BaseIdentity, path: Path) -> None:
    """Write an identity as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(identity), indent=2) + "\n")


def load_identity(path: Path) -> BaseIdentity:
    """Read what ``save_identity`` wrote."""
    return BaseIdentity(**json.loads(path.read_text()))


def _find(model: str, revision: str | None, converted: Path) -> BaseIdentity:
    if model.startswith("package:"):
        folder = _converted(model.removeprefix("package:"), converted)
        return _identity(model, folder.as_posix(), None, folder)
    if Path(model).is_dir():
        return _identity(model, Path(model).as_posix(), None, Path(model))
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise BaseModelError(f"no folder {model!r}, and it is not a Hub id of the form owner/name")
    folder, commit = _from_hub(model, revision)
    return _identity(model, model, commit, folder)


def _identity(model: str, load_from: str, revision: str | None, folder: Path) -> BaseIdentity:
    paths = sorted({path for pattern in IDENTIFYING for path in folder.glob(pattern)})
    weights = [p for p in paths if any(p.match(pattern) for pattern in WEIGHTS)]
    if not weights or not (folder / "config.json").exists():
        raise BaseModelError(f"{folder} holds no config.json with *.safetensors or *.bin weights")
    hashes = {path.name: _sha256(path) for path in paths}
    return BaseIdentity(
        model=model,
        load_from=load_from,
        revision=revision,
        sha256=hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
        files=hashes,
        weight_bytes=sum(p.stat().st_size for p in weights),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_hub(model: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(IDENTIFYING)))
    except Exception as error:  # the Hub client raises many types; the user needs the name and the reason
        raise BaseModelError(f"cannot get {model!r} (revision {revision}) from the Hub: {error}") from error
    return folder, folder.name  # in the cache, the name of a snapshot's folder is its commit


def _converted(module: str, into: Path) -> Path:
    """Return the folder of a GGUF model in transformers' own format, converting it on first use."""
    try:
        found = importlib.util.find_spec(module)  # locates it without an import
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise BaseModelError(f"no Python package {module!r} is installed; `make setup` installs the default")
    files = sorted(Path(found.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise BaseModelError(f"package {module!r} holds {len(files)} GGUF files instead of one")
    folder = into / module
    with _lock(into / f".{module}.lock"):
        if not folder.exists():
            partial = into / f".{module}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _convert(files[0], partial)
            partial.rename(folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if tokenizer.pad_token_id == tokenizer.eos_token_id and tokenizer.unk_token_id is not None:
        # a separate pad token: sequence classification finds the last token by `id != pad`, which must not skip the end
        tokenizer.pad_token = tokenizer.unk_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = ""  # the converted folder must not depend on the place of the GGUF file,
    tokenizer.init_kwargs.pop("local_files_only", None)  # nor on whether the Hub was reachable
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
