// A card for each replica: its moving picture, and the same in numbers and words.

import { ReplicaFigures } from "./figures.js";
import { UNKNOWN, byId, count, element, milliseconds, percent, say } from "./format.js";
import { Lane } from "./picture.js";

const FIGURES = [
  ["online", "Online", "online"],
  ["offline", "Offline", "offline"],
  ["tokens", "tok/s", ""],
  ["ttft", "TTFT", ""],
  ["tbt", "TBT", ""],
  ["late", "In time", ""],
  ["kv", "KV used", ""],
  ["room", "Headroom", ""],
  ["stops", "Stops", ""],
  ["restores", "Restored", ""],
];

class Card {
  constructor(id, stage) {
    this.figures = new ReplicaFigures();
    this.state = element("span", { class: "state" });
    this.doing = element("p", { class: "doing" });
    this.canvas = element("canvas", { role: "img", "aria-label": `Load of replica ${id}` });
    this.values = {};
    const list = element("dl");
    for (const [name, title, kind] of FIGURES) {
      this.values[name] = element("dd", { class: kind }, UNKNOWN);
      list.append(element("div", {}, element("dt", {}, title), this.values[name]));
    }
    const title = element("h3", {}, element("span", { class: "id", title: id }, id), element("span", { class: "spring" }), this.state);
    this.node = element("article", { class: "replica", "aria-label": `Replica ${id}` }, title, this.canvas, list, this.doing);
    this.lane = new Lane(this.canvas);
    stage.add(this.lane);
  }

  show(replica, now, slo) {
    const happened = this.figures.add(replica);
    this.lane.add({ at: now, online: replica.online_running + replica.online_waiting, offline: replica.offline_running, window: replica.window });
    for (const [kind] of happened) this.lane.mark(now, kind);
    const latency = replica.latency[slo.name] || {};
    const { values } = this;
    say(this.state, replica.state === "serving" ? (replica.alone ? "alone" : "serving") : replica.state);
    say(this.doing, replica.doing);
    say(values.online, replica.online_waiting ? `${count(replica.online_running)} + ${count(replica.online_waiting)}` : count(replica.online_running));
    say(values.offline, `${count(replica.offline_running)} / ${count(replica.window)}`);
    say(values.tokens, count(this.figures.tokensPerSecond));
    say(values.ttft, milliseconds(latency.ttft_p95_ms));
    say(values.tbt, milliseconds(latency.tbt_p95_ms));
    values.ttft.classList.toggle("late", latency.ttft_p95_ms > slo.ttft_slo_ms);
    values.tbt.classList.toggle("late", latency.tbt_p95_ms > slo.tbt_slo_ms);
    say(values.late, percent(replica.slo_attainment));
    say(values.kv, percent(replica.kv_usage));
    say(values.room, replica.headroom_tokens_per_s === null ? UNKNOWN : `${count(replica.headroom_tokens_per_s)}/s`);
    say(values.stops, count(replica.stops));
    say(values.restores, count(replica.restored_tokens));
    return happened;
  }
}

export class Replicas {
  constructor(stage) {
    this.stage = stage;
    this.cards = new Map();
  }

  // Gives what has happened, as [replica id, kind, number], and the tokens of all in a second.
  show(frame, now, slo) {
    const happened = [];
    const place = byId("replicas");
    const ids = new Set(frame.replicas.map((one) => one.replica_id));
    for (const [id, card] of this.cards) {
      if (ids.has(id)) continue;
      this.stage.remove(card.lane);
      card.node.remove();
      this.cards.delete(id);
    }
    let tokens = null;
    for (const replica of frame.replicas) {
      let card = this.cards.get(replica.replica_id);
      if (!card) {
        card = new Card(replica.replica_id, this.stage);
        this.cards.set(replica.replica_id, card);
        place.append(card.node);
      }
      for (const [kind, number] of card.show(replica, now, slo)) happened.push([replica.replica_id, kind, number]);
      const rate = card.figures.tokensPerSecond;
      if (rate !== null) tokens = (tokens ?? 0) + rate;
    }
    const { totals } = frame;
    const more = totals.replicas - frame.replicas.length;
    const parts = [`${totals.serving} of ${totals.replicas} serving`];
    if (more > 0) parts.push(`${frame.replicas.length} shown`);
    if (!frame.has_controller) parts.push("no controller is at work");
    say(byId("replicas-more"), totals.replicas ? parts.join(" · ") : "");
    byId("no-replicas").hidden = totals.replicas > 0;
    byId("legend").hidden = !totals.replicas;
    return { happened, tokens };
  }
}
