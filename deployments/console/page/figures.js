// What follows from one frame and those before: rates, and what has happened in between.

const RATE_MS = 5_000;
const COUNTED = [
  ["stops", "stop"],
  ["offline_preemptions", "preempt"],
  ["resumed_passes", "resume"],
  ["restored_tokens", "restore"],
];

export class ReplicaFigures {
  constructor() {
    this.seen = [];
  }

  // The happenings since the last frame, as [kind, number]; a replica that began again counts from 0.
  add(replica) {
    const before = this.seen.at(-1);
    this.seen.push(replica);
    const newest = replica.at_ms;
    // The first report has no time; and one that counts less is of a replica that has begun again.
    if (before && (!before.at_ms || replica.offline_computed_tokens < before.offline_computed_tokens)) this.seen = [replica];
    while (this.seen.length > 2 && this.seen[1].at_ms < newest - RATE_MS) this.seen.shift();
    if (!before) return [];
    if (before.at_ms === newest && this.seen.length > 1) this.seen.splice(-2, 1);
    const happened = [];
    for (const [name, kind] of COUNTED) {
      const more = (replica[name] ?? 0) - (before[name] ?? 0);
      if (replica[name] !== null && before[name] !== null && more > 0) happened.push([kind, more]);
    }
    return happened;
  }

  get tokensPerSecond() {
    const [first, last] = [this.seen[0], this.seen.at(-1)];
    if (!last || last.offline_computed_tokens === null || first.offline_computed_tokens === null) return null;
    const seconds = (last.at_ms - first.at_ms) / 1000;
    const tokens = last.offline_computed_tokens - first.offline_computed_tokens;
    return seconds < 0.4 || tokens < 0 ? null : tokens / seconds;
  }
}

// The worst of all replicas: percentiles cannot be put together, and the worst one is what somebody feels.
export function worst(replicas, name, field) {
  const values = replicas.map((one) => one.latency[name]?.[field]).filter((value) => value !== null && value !== undefined);
  return values.length ? Math.max(...values) : null;
}
