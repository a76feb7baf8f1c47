// The console: hears the live events, and shows them.

import { key } from "./api.js";
import { Batches } from "./batches.js";
import { worst } from "./figures.js";
import { byId, count, countOf, duration, element, milliseconds, say, timeOf } from "./format.js";
import { Chart, Stage } from "./picture.js";
import { Replicas } from "./replicas.js";
import { LiveStream } from "./stream.js";
import { SubmitForm } from "./submit.js";

const MOST_EVENTS = 60;
const MARGIN_MS = 200; // Pictures are a look and this much behind: the next figures are there before they are needed.
const KINDS = {
  stop: (n) => ["stop", `${countOf(n, "pass", "passes")} of offline work stopped for online requests`],
  preempt: (n) => ["stop", `${countOf(n, "offline request")} preempted`],
  resume: (n) => ["restore", `${countOf(n, "stopped pass", "stopped passes")} continued`],
  restore: (n) => ["restore", `${countOf(n, "token")} restored from host memory`],
};

const announce = (text) => say(byId("announce"), text);
const stage = new Stage();
const replicas = new Replicas(stage);
const batches = new Batches(announce);
const form = new SubmitForm(announce);
const COLOURS = { ttft: "online", tbt: "online", online: "online", offline: "offline" };
const charts = Object.fromEntries(Object.entries(COLOURS).map(([name, colour]) => [name, new Chart(byId(`${name}-chart`), colour)]));
Object.values(charts).forEach((chart) => stage.add(chart));

let objectives = {};
let newest = null;
let state = "connecting";
let retryAt = 0;

function objective() {
  const name = byId("class").value || "default";
  return { name, ...(objectives[name] || { ttft_slo_ms: 0, tbt_slo_ms: 0 }) };
}

function showHello(hello) {
  objectives = hello.objectives;
  say(byId("model"), hello.tenant === "default" ? hello.model : `${hello.model} · ${hello.tenant}`);
  const names = Object.keys(objectives);
  const chosen = objective().name;
  byId("class").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  byId("class").value = names.includes(chosen) ? chosen : "default";
  byId("class-choice").hidden = names.length < 2;
  byId("key-button").hidden = !key.get();
  form.offer(hello.endpoints, hello.max_window_s);
  stage.delayMs = 1_000 * hello.period_s + MARGIN_MS;
}

function showLatency(kind, frame, now) {
  const slo = objective();
  const limit = slo[`${kind}_slo_ms`];
  const value = worst(frame.replicas, slo.name, `${kind}_p95_ms`);
  const median = worst(frame.replicas, slo.name, `${kind}_p50_ms`);
  say(byId(kind), milliseconds(value));
  byId(kind).classList.toggle("late", value > limit);
  say(byId(`${kind}-slo`), `of ${milliseconds(limit)}${median === null ? "" : ` · p50 ${milliseconds(median)}`}`);
  charts[kind].objective = limit;
  charts[kind].add({ at: now, value });
  const title = kind === "ttft" ? "Time to first token" : "Time between tokens";
  byId(`${kind}-chart`).setAttribute("aria-label", `${title}, p95: ${milliseconds(value)}, objective ${milliseconds(limit)}`);
}

function showReplicas(frame) {
  const now = performance.now();
  newest = { at: Date.now() };
  setState("live", "Live");
  const { happened, tokens } = replicas.show(frame, now, objective());
  showLatency("ttft", frame, now);
  showLatency("tbt", frame, now);
  const { totals } = frame;
  charts.online.add({ at: now, value: totals.online_running + totals.online_waiting });
  charts.offline.add({ at: now, value: tokens });
  say(byId("online"), count(totals.online_running));
  const rate = frame.replicas.reduce((sum, one) => sum + (one.online_rate_per_s ?? 0), 0);
  say(byId("online-more"), `${count(totals.online_waiting)} waiting · ${rate.toFixed(rate < 10 ? 1 : 0)} requests/s`);
  say(byId("offline"), tokens === null ? count(totals.offline_running) : count(tokens));
  say(byId("offline-unit"), tokens === null ? "requests" : "tok/s");
  say(byId("offline-more"), `${count(totals.offline_running)} of ${count(totals.window)} in the window`);
  happened.forEach((one) => showEvent(...one));
}

function showEvent(replica, kind, number) {
  const [mark, text] = KINDS[kind](number);
  const at = element("time", {}, timeOf(Date.now()));
  byId("events").prepend(element("li", {}, at, element("span", { class: "id", title: replica }, replica), element("span", { class: `mark ${mark}` }, text)));
  while (byId("events").children.length > MOST_EVENTS) byId("events").lastChild.remove();
  byId("no-events").hidden = true;
}

function setState(next, text, at = 0) {
  const wasBad = ["lost", "away"].includes(state);
  const isBad = ["lost", "away"].includes(next);
  if (isBad && !wasBad) announce(text);
  if (wasBad && next === "live") announce("Live again");
  state = next;
  retryAt = at;
  byId("link").dataset.state = next;
  byId("link").dataset.text = text;
  byId("retry").hidden = next !== "lost";
  const isOld = next !== "live" && newest !== null;
  document.body.classList.toggle("stale", isOld);
  if (isOld) stage.stop();
  else stage.go();
  tick();
}

function tick() {
  const parts = [byId("link").dataset.text || "Connecting"];
  if (retryAt) parts.push(`next try in ${duration(Math.max(0, retryAt - Date.now()) / 1000)}`);
  if (state !== "live" && newest) parts.push(`figures of ${timeOf(newest.at)}`);
  say(byId("link-text"), parts.join(" · "));
}

const live = new LiveStream("conserve/v1/events", {
  event(name, body) {
    if (name === "hello") showHello(body);
    else if (name === "replicas") showReplicas(body);
    else if (name === "batches") batches.show(body);
    else if (name === "away") setState("away", `Away: ${body.reason}`);
  },
  state(next, text, at) {
    if (next === "refused") {
      setState("lost", "A key is needed");
      askKey(key.get() ? text : "");
    } else if (next === "lost") {
      setState("lost", text, at);
    } else {
      // Connected is not yet live: the first figures say that, or that there are none.
      setState(state === "live" ? "connecting" : state, "Connecting");
    }
  },
});

function askKey(problem) {
  batches.clear();
  byId("key-button").hidden = false;
  byId("key-error").hidden = !problem;
  say(byId("key-error"), problem);
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  byId("key-forget").hidden = !key.get();
  byId("key").focus();
}

function useKey(value) {
  key.set(value);
  byId("key").value = "";
  byId("key-dialog").close();
  batches.clear();
  live.start();
}

byId("key-button").addEventListener("click", () => askKey(""));
byId("key-close").addEventListener("click", () => byId("key-dialog").close());
byId("key-forget").addEventListener("click", () => useKey(""));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
});
byId("retry").addEventListener("click", () => live.start());
byId("class").addEventListener("change", () => {
  charts.ttft.samples = [];
  charts.tbt.samples = [];
});
setInterval(tick, 1_000);
setInterval(() => batches.draw(), 10_000);
live.start();
