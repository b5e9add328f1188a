"""Progressive validation of a learner on a stream, from its start or from where it was interrupted, to its end."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from fptt.experiments.configs.stream_config import StreamConfig
from fptt.experiments.process.console import say
from fptt.experiments.process.errors import UnreadableError, UnwritableError, UserError
from fptt.experiments.streams.folder import StreamFolder
from fptt.experiments.streams.stream import Streaming


def stream(config: StreamConfig, folder: StreamFolder, console: Console, *, overwrite: bool = False) -> dict[str, Any]:
    """Send a learner through the stream of a config, and return the summary.

    Ctrl-C ends it after some hundred steps: a checkpoint is saved, the folder is completed with what there is, its
    status is `interrupted`, and the KeyboardInterrupt goes on to the caller.

    Raises:
        UserError: If data or settings are not usable, or the learning diverges.
    """

    def start() -> Streaming:
        streaming = Streaming(config, folder)
        folder.create(overwrite=overwrite)
        streaming.save()
        return streaming

    return _to_the_end(start, folder, console)


def resume(folder: StreamFolder, console: Console) -> dict[str, Any]:
    """Go on with the stream in a folder from its checkpoint, and return the summary; see `stream`.

    Raises:
        UserError: If there is no checkpoint, or it is damaged or of other data; see also `stream`.
    """

    def start() -> Streaming:
        found: list[Streaming] = []
        folder.checkpoints.restore(
            lambda state: found.append(Streaming.of(state, folder)), lambda text: say(console, text)
        )
        return found[0]

    return _to_the_end(start, folder, console)


def _to_the_end(start: Callable[[], Streaming], folder: StreamFolder, console: Console) -> dict[str, Any]:
    try:
        return _go_on(start(), console)
    except (UnreadableError, UnwritableError) as error:
        hint = f"To go on when that is mended: {folder.resume_command}." if folder.checkpoints.files() else ""
        raise UserError(f"{error} {hint}".strip()) from error


def _go_on(streaming: Streaming, console: Console) -> dict[str, Any]:
    """Go through the rest of the stream, and complete the folder whatever happens, as long as it can be written."""
    status, can_write = "failed", True
    try:
        streaming.run(console)
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        folder = streaming.folder
        say(
            console, f"interrupted; completing {folder.path} (again to stop at once)\nto go on: {folder.resume_command}"
        )
        raise
    except UnwritableError:
        can_write = False
        raise
    except FloatingPointError as error:
        raise UserError(f"{error} Try a smaller lr or max_norm.") from error
    finally:
        summary = streaming.finish(status) if can_write else {}
    return summary
