"""What every service needs, opened once per process."""

from __future__ import annotations

from dataclasses import dataclass, field

from farm.domain.model import Registry
from farm.objects.intake import Intake
from farm.objects.storage import Storage
from farm.services.cleanup import CleanupThread
from farm.services.estimates import Estimates
from farm.services.live_registry import LiveRegistry
from farm.settings import Settings
from farm.store.unit_of_work import Store


@dataclass(frozen=True, kw_only=True)
class ServiceContext:
    """The connections of one process. Safe to share between threads."""

    settings: Settings
    store: Store
    storage: Storage
    models: LiveRegistry
    intake: Intake
    cleanup: CleanupThread
    estimates: Estimates = field(default_factory=Estimates)

    @property
    def registry(self) -> Registry:
        """The models now; read it once for what has to agree."""
        return self.models.current
