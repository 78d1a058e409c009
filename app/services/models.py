"""Models come and go at run time: loading, unloading, reloading."""

from __future__ import annotations

from app.backends.base import Backend, ModelState
from app.catalog.entry import Catalog, CatalogEntry
from app.errors import NotFound, UnknownModel
from app.services.status import StatusService
from app.services.views import ModelView


class ModelService:
    """Asks the backend to load and unload. Each method returns at once; the model's state tells the rest.

    Args:
        catalog: Which models there are.
        backend: What holds them.
        status: Tells how a model is.
    """

    def __init__(self, catalog: Catalog, backend: Backend, status: StatusService) -> None:
        self._catalog = catalog
        self._backend = backend
        self._status = status

    def load(self, model: str) -> ModelView:
        """Load a model; one that is loaded, or on its way, stays as it is.

        Raises:
            NotFound: There is none of that id; the message names the known ones.
        """
        entry = self._entry(model)
        if self._state(entry) not in ("waiting", "loading", "ready"):
            self._backend.load_model(entry.id)
        return self._status.model(entry.id)

    def unload(self, model: str) -> ModelView:
        """Unload a model once its pictures are finished; until it is loaded again, requests are refused.

        Raises:
            NotFound: There is none of that id; the message names the known ones.
        """
        entry = self._entry(model)
        if self._state(entry) not in ("unloading", "unloaded"):
            self._backend.unload_model(entry.id)
        return self._status.model(entry.id)

    def reload(self, model: str) -> ModelView:
        """Read a model's weights anew once its pictures are finished; requests made meanwhile wait.

        Raises:
            NotFound: There is none of that id; the message names the known ones.
        """
        entry = self._entry(model)
        self._backend.load_model(entry.id)
        return self._status.model(entry.id)

    def _entry(self, model: str) -> CatalogEntry:
        try:
            return self._catalog.resolve(model)
        except UnknownModel as error:
            raise NotFound(error.message, field="model") from error

    def _state(self, entry: CatalogEntry) -> ModelState:
        return self._status.model(entry.id).state
