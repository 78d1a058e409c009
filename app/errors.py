"""Every error that Darkroom raises on purpose, as one tree.

::

    DarkroomError
    ├── InvalidRequest           400  a field is wrong; names the field and the limit
    │   └── UnknownModel         400  names the known models
    ├── Forbidden                403  foreign origin, or not yours to change
    ├── NotFound                 404  no such generation, image or page
    ├── Conflict                 409  the same idempotency key with another body
    ├── TooManyRequests          429  the queue is full, or one client's share is; retry_after
    ├── Unavailable              503  not now, perhaps later; retry_after
    │   ├── ModelNotReady        503  the model still loads
    │   ├── StorageUnavailable   503  the database or the disk does not answer
    │   └── ShuttingDown         503  the process is ending
    ├── GenerationError          500  one generation failed; its neighbours go on
    │   ├── OutOfMemory          500  not even a batch of one fits
    │   ├── PictureWithheld      422  the safety checker flagged the picture
    │   ├── ModelLoadError       500  weights are missing, corrupt or not allowed
    │   └── EngineDied           500  the device or the engine thread is lost
    └── InvalidConfiguration     500  a setting or a catalogue is wrong; told at start-up, not to clients

`code` is stable and meant for programs, `message` is meant for people and never holds a path or a token.
Foreign exceptions are translated where they enter, with ``raise … from exc``.
"""

from __future__ import annotations


class DarkroomError(Exception):
    """Base of the tree; `status` is the HTTP status that the web layer answers with."""

    code = "error"
    status = 500

    def __init__(self, message: str, *, field: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after


class InvalidRequest(DarkroomError):
    """A field of the request is wrong; `field` names it and the message states the limit."""

    code = "invalid_request"
    status = 400


class UnknownModel(InvalidRequest):
    """No model of that name; the message names the known ones."""

    code = "unknown_model"


class Forbidden(DarkroomError):
    """A foreign origin, or something that is not yours to change."""

    code = "forbidden"
    status = 403


class NotFound(DarkroomError):
    """No such generation, image or page."""

    code = "not_found"
    status = 404


class Conflict(DarkroomError):
    """The request contradicts an earlier one."""

    code = "conflict"
    status = 409


class TooManyRequests(DarkroomError):
    """The queue is full, or one client's share of it; `retry_after` is in seconds."""

    code = "too_many_requests"
    status = 429


class Unavailable(DarkroomError):
    """Not now, perhaps in `retry_after` seconds."""

    code = "unavailable"
    status = 503


class ModelNotReady(Unavailable):
    """The model still loads, or failed to."""

    code = "model_not_ready"


class StorageUnavailable(Unavailable):
    """The database or the disk does not answer."""

    code = "storage_unavailable"


class ShuttingDown(Unavailable):
    """The process is ending."""

    code = "shutting_down"


class GenerationError(DarkroomError):
    """One generation failed; its neighbours go on."""

    code = "generation_failed"


class OutOfMemory(GenerationError):
    """Not even a batch of one fits on the device."""

    code = "out_of_memory"


class PictureWithheld(GenerationError):
    """The safety checker flagged the finished picture."""

    code = "picture_withheld"
    status = 422


class ModelLoadError(GenerationError):
    """Weights are missing, corrupt or not allowed."""

    code = "model_load_failed"


class EngineDied(GenerationError):
    """The device or the engine thread is lost; the process should be restarted."""

    code = "engine_died"


class InvalidConfiguration(DarkroomError):
    """A setting or a catalogue is wrong; the message names it, and is meant for who starts the process."""

    code = "invalid_configuration"
