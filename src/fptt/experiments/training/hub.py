"""Runs on the Hugging Face hub: a finished run folder as a model there, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from fptt.experiments.process.errors import UserError, one_line
from fptt.experiments.training.folder import RunFolder


def push(path: Path, name: str, *, private: bool = False, revision: str | None = None) -> str:
    """Put a finished run on the hub as a model, made if need be, and return its address.

    The path of the data in config.yaml is cut to its last part. Checkpoints stay. Files of an earlier run that this one
    does not have are removed there, others are kept.

    Args:
        path: The run folder.
        name: `USER/NAME` of the model.
        private: Whether a new model is private.
        revision: A branch other than the main one.

    Raises:
        UserError: If the folder is not that of a finished run, or the hub refuses.
    """
    folder = RunFolder(path)
    config, status = folder.read_config(), folder.read_summary().get("status")
    if status != "finished":
        raise UserError(f"run folder {path} must be of a finished run, got one that was {status}.")
    folder.read_weights()
    if config.data is not None and Path(config.data).is_absolute():
        config = replace(config, data=Path(config.data).name)
    files = [file for file in folder.files() if file.exists()]
    hub = _library()
    with _reporting(f"{name} on the hub cannot be written"):
        contents = {file: file if file != folder.config_file else config.to_yaml().encode() for file in files}
        operations = [hub.CommitOperationAdd(file.name, content) for file, content in contents.items()]
        api = hub.HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        lacking = {file.name for file in folder.files()} - {file.name for file in files}
        there = api.list_repo_files(name, revision=revision)
        operations += [hub.CommitOperationDelete(own) for own in there if own in lacking]
        summary = f"{config.method.upper()} on {config.task}, seed {config.seed}"
        api.create_commit(name, operations, commit_message=summary, revision=revision)
    return str(address)


def pull(name: str, path: Path, *, revision: str | None = None) -> RunFolder:
    """Get a run from the hub into a new folder, and return it.

    Args:
        name: `USER/NAME` of the model.
        path: The folder to make.
        revision: A branch, a tag or a commit, other than the main branch.

    Raises:
        UserError: If the folder is not empty, the hub has no such model, or what it has is not a run.
    """
    folder = RunFolder(path)
    folder.check_free(can_overwrite=False)
    hub, patterns = _library(), [file.name for file in folder.files()]
    with _reporting(f"{name} on the hub cannot be read"):
        hub.HfApi().snapshot_download(name, local_dir=path, allow_patterns=patterns, revision=revision)
    folder.read_config()
    folder.read_weights()
    return folder


def _library() -> Any:
    try:
        return import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise UserError(f"the hub needs {error.name}: pip install 'fptt[hub]'") from error


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Raise UserError for what goes wrong on the way to the hub, there, or by its rules for names."""
    # the hub's own error, and that of the HTTP library under it (httpx, httpx2, …), of which no connection is one
    errors = import_module("huggingface_hub.errors").HfHubHTTPError.__bases__
    try:
        yield
    except (OSError, ValueError, *errors) as error:
        raise UserError(f"{what}: {one_line(error).rstrip('.')}.") from error
