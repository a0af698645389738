"""An HTTP client of one Vecmill, on one connection that stays open."""
import http.client
import json
import time
from urllib.parse import urlsplit

from .processes import BenchError

REQUEST_WITHIN = 60.0


class Client:
    def __init__(self, url):
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=REQUEST_WITHIN)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def request(self, method, path, body=None):
        """The status, the answer and its headers."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        return response.status, response.read(), response.headers

    def get(self, path):
        status, answer, _ = self.request("GET", path)
        if status != 200:
            raise BenchError(f"GET {path}: {status} {answer[:300]!r}")
        return json.loads(answer)

    def post(self, path, body):
        """Sends JSON, given as an object or as bytes; waits and repeats when told to."""
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        while True:
            status, answer, headers = self.request("POST", path, encoded)
            if status in (200, 202):
                return json.loads(answer)
            if status != 429:
                raise BenchError(f"POST {path}: {status} {answer[:300]!r}")
            time.sleep(float(headers.get("Retry-After", 1)))

    def counts(self, tenant=None):
        """Nodes by status."""
        scope = "" if tenant is None else f"?tenant_id={tenant}"
        return self.get(f"/admin/embedding/status{scope}")["status_counts"]
