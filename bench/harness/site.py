"""An installation of several processes: Redis, Postgres, an API; workers as they are needed."""
from contextlib import ExitStack

from .servers import Postgres, Redis
from .vecmill import Vecmill


class Site:
    def __init__(self, root):
        self.root = root
        self.parts = ExitStack()

    def __enter__(self):
        with ExitStack() as parts:
            redis = parts.enter_context(Redis())
            postgres = parts.enter_context(Postgres(self.root))
            self.stores = {"REDIS_URL": redis.url, "ACTIVEKG_DSN": postgres.dsn}
            self.api = parts.enter_context(Vecmill(self.root, "api", self.stores))
            self.client = parts.enter_context(self.api.client())
            self.parts = parts.pop_all()
        return self

    def __exit__(self, *_):
        self.parts.close()

    def start_worker(self):
        return self.parts.enter_context(Vecmill(self.root, "worker", self.stores))
