"""A producer and a worker of another installation, as their contract with Redis has it.

    python3 foreign.py produce PORT DATABASE FIRST COUNT
    python3 foreign.py work PORT DATABASE

Only the standard library. The worker makes the vectors of the `hash` backend, so that one checker
serves all rows.
"""
import json, socket, sqlite3, struct, sys, uuid

MASK = 2**64 - 1


class Redis:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.stream = self.socket.makefile("rb")

    def __call__(self, *words):
        words = [str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(words)] + [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self.socket.sendall(b"".join(parts))
        return self.answer()

    def answer(self):
        line = self.stream.readline().rstrip()
        kind, rest = line[:1], line[1:]
        if kind == b"*":
            return None if rest == b"-1" else [self.answer() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self.stream.read(int(rest) + 2)[:-2].decode()
        if kind == b"-":
            raise RuntimeError(rest.decode())
        return rest.decode()


def word_id(word):
    hash = 0x811C9DC5
    for byte in word.encode():
        hash = ((hash ^ byte) * 0x01000193) & 0xFFFFFFFF
    return hash


def split_mix(state):
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def vector(text):
    state = 0
    for word in text.split()[:256]:
        state = split_mix(state ^ word_id(word))
    values = []
    for _ in range(384):
        state = split_mix(state)
        values.append((state >> 40) / 2**23 - 1.0)
    length = sum(value * value for value in values) ** 0.5
    return struct.pack("<384f", *(value / length for value in values))


def produce(redis, db, first, count):
    for i in range(first, first + count):
        node, tenant = uuid.uuid4(), ["theirs", "tenant-0", None][i % 3]
        with db:
            db.execute(
                "INSERT INTO nodes (id, tenant_id, classes, props, embedding_status,"
                " embedding_attempts, version, created_at, updated_at)"
                " VALUES (?, ?, '[\"Chunk\"]', ?, 'queued', 0, 1,"
                " strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'),"
                " strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))",
                (node.bytes, tenant, json.dumps({"text": f"their text {i}"})),
            )
        if redis("SET", f"embedding:pending:{node}", 1, "NX", "EX", 3600) is None:
            continue
        job = {"job_id": str(uuid.uuid4()), "node_id": str(node), "tenant_id": tenant,
               "action": "embed", "attempts": 0, "enqueued_at": 1795477681.46, "source": "theirs"}
        redis("LPUSH", "embedding:queue", json.dumps(job))
        count_key = f"embedding:tenant:pending:{tenant or 'default'}"
        redis("INCRBY", count_key, 1)
        redis("EXPIRE", count_key, 3600)


def work(redis, db):
    while True:
        popped = redis("BRPOP", "embedding:queue", 1)
        if popped is None:
            continue
        job = json.loads(popped[1])
        node = uuid.UUID(job["node_id"])
        row = db.execute("SELECT props FROM nodes WHERE id = ?", (node.bytes,)).fetchone()
        if row is not None:
            with db:
                db.execute(
                    "UPDATE nodes SET embedding = ?, embedding_status = 'ready',"
                    " embedding_error = NULL,"
                    " updated_at = strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now') WHERE id = ?",
                    (vector(json.loads(row[0])["text"]), node.bytes),
                )
            print("embedded", node, flush=True)
        redis("DEL", f"embedding:pending:{node}")
        redis("DECRBY", f"embedding:tenant:pending:{job.get('tenant_id') or 'default'}", 1)


if __name__ == "__main__":
    role, port, database = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    connections = Redis(port), sqlite3.connect(database, timeout=30)
    if role == "produce":
        produce(*connections, int(sys.argv[4]), int(sys.argv[5]))
    else:
        work(*connections)
