// BullMQ on the same Redis as benches/queue.rs, in the same steps: adds alone, no-op jobs alone,
// and both at once. Prints one JSON object.
//
//   REDIS_URL=redis://127.0.0.1:PORT node bench.mjs [JOBS]
import { randomUUID } from "node:crypto";
import { Queue, Worker } from "bullmq";

const JOBS = Number(process.argv[2] ?? 50_000);
const ROUNDS = 3;
const ADDED_AT_ONCE = 200;
const PRODUCERS = 4;
const CONCURRENCY = 100;
const NAME = "bench";

const { hostname, port } = new URL(process.env.REDIS_URL);
const connection = { host: hostname, port: Number(port), maxRetriesPerRequest: null };
const queue = new Queue(NAME, { connection });
await queue.waitUntilReady();

// What our jobs hold, too. Done jobs leave nothing, as with us.
function jobs() {
  return Array.from({ length: JOBS }, () => ({
    name: "embed",
    data: { node_id: randomUUID(), tenant_id: "default", action: "embed" },
    opts: { removeOnComplete: true },
  }));
}

async function add(jobs) {
  const requests = [];
  for (let i = 0; i < jobs.length; i += ADDED_AT_ONCE) requests.push(jobs.slice(i, i + ADDED_AT_ONCE));
  const start = performance.now();
  const producer = async () => {
    while (requests.length > 0) await queue.addBulk(requests.pop());
  };
  await Promise.all(Array.from({ length: PRODUCERS }, producer));
  return (performance.now() - start) / 1000;
}

// A worker that is connected and does not fetch yet.
async function idleWorker() {
  const worker = new Worker(NAME, async () => {}, { connection, concurrency: CONCURRENCY, autorun: false });
  await worker.waitUntilReady();
  return worker;
}

async function work(worker) {
  const start = performance.now();
  await new Promise((resolve, reject) => {
    let done = 0;
    worker.on("completed", () => ++done === JOBS && resolve());
    worker.on("failed", (_, error) => reject(error));
    worker.on("error", reject);
    worker.run().catch(reject);
  });
  return (performance.now() - start) / 1000;
}

async function addAndProcess(worker, jobs) {
  const start = performance.now();
  await Promise.all([add(jobs), work(worker)]);
  return (performance.now() - start) / 1000;
}

function rate(rounds) {
  return Math.round(JOBS / rounds.sort((a, b) => a - b)[Math.floor(rounds.length / 2)]);
}

const adds = [], processes = [], both = [];
for (let round = 1; round <= ROUNDS; round++) {
  console.error(`bullmq: round ${round} of ${ROUNDS}`);
  adds.push(await add(jobs()));
  let worker = await idleWorker();
  processes.push(await work(worker));
  await worker.close();
  worker = await idleWorker();
  both.push(await addAndProcess(worker, jobs()));
  await worker.close();
}
await queue.obliterate({ force: true });
await queue.close();
console.log(JSON.stringify({
  jobs: JOBS,
  add_jobs_per_s: rate(adds),
  process_jobs_per_s: rate(processes),
  end_to_end_jobs_per_s: rate(both),
}));
