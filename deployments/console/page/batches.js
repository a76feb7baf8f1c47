// The table of batches: rows stay where they are and change in place, so focus and selection do.

import { call, download } from "./api.js";
import { byId, count, countOf, dayOf, duration, element, say } from "./format.js";

const LIVE = ["validating", "in_progress"];
const ENDED = { completed: "good", failed: "wrong", expired: "wrong", cancelled: "" };

function nameStatus(batch) {
  if (batch.paused_at && LIVE.includes(batch.status)) return "paused";
  return batch.status.replace("_", " ");
}

function describeEnd(batch, now) {
  const due = batch.expires_at ? `due in ${duration(batch.expires_at - now)}` : "";
  if (batch.status in ENDED) return [`created ${dayOf(batch.created_at)}`, ""];
  if (batch.paused_at) return ["paused", due];
  if (!batch.predicted_end_at) return [batch.status === "in_progress" ? "end not known yet" : "", due];
  const end = `ends in ${duration(Math.max(0, batch.predicted_end_at - now))}`;
  const isLate = batch.expires_at && batch.predicted_end_at > batch.expires_at;
  return [end, isLate ? `late by ${duration(batch.predicted_end_at - batch.expires_at)}` : due, isLate];
}

class Row {
  constructor(batch, table) {
    this.table = table;
    this.id = batch.id;
    const cell = (...children) => element("td", { role: "cell" }, ...children);
    this.status = element("span", { class: "status" });
    this.problems = element("div", { class: "problem" });
    this.counts = element("span");
    this.done = element("i");
    this.failed = element("i");
    this.bar = element("div", { class: "bar", role: "progressbar", "aria-label": "Progress", "aria-valuemin": "0" }, this.done, this.failed);
    this.end = element("span");
    this.due = element("div", { class: "quiet" });
    const ends = cell(this.end, this.due);
    ends.className = "when";
    this.acts = cell();
    this.acts.className = "acts";
    const short = `${batch.id.slice(0, 14)}…`;
    const about = [batch.endpoint.replace("/v1/", ""), batch.completion_window];
    if (batch.priority) about.push(`priority ${batch.priority}`);
    this.about = element("div", { class: "quiet" }, about.join(" · "));
    this.node = element(
      "tr",
      { role: "row", id: batch.id },
      cell(element("span", { class: "id", title: batch.id }, short), this.about),
      cell(this.status, this.problems),
      cell(this.counts, this.bar),
      ends,
      this.acts,
    );
    this.buttons = new Map();
  }

  show(batch, now) {
    this.batch = batch;
    const { total, completed, failed } = batch.request_counts;
    say(this.status, nameStatus(batch));
    this.status.className = `status ${ENDED[batch.status] || ""}`;
    say(this.counts, total ? `${count(completed)} of ${count(total)}${failed ? `, ${count(failed)} failed` : ""}` : "");
    this.bar.hidden = !total;
    this.bar.setAttribute("aria-valuemax", total);
    this.bar.setAttribute("aria-valuenow", completed + failed);
    this.bar.setAttribute("aria-valuetext", this.counts.textContent);
    this.bar.classList.toggle("still", Boolean(batch.paused_at) || batch.status in ENDED);
    this.done.style.width = total ? `${(100 * completed) / total}%` : "0";
    this.failed.style.width = total ? `${(100 * failed) / total}%` : "0";
    const [end, due, isLate] = describeEnd(batch, now);
    say(this.end, end);
    say(this.due, due);
    this.due.classList.toggle("late", Boolean(isLate));
    if (batch.predicted_end_at) this.end.title = dayOf(batch.predicted_end_at);
    this.showProblems(batch);
    this.showActs(batch);
  }

  showProblems(batch) {
    const lines = batch.errors.map((one) => `${one.line ? `Line ${one.line}: ` : ""}${one.message}`);
    if (batch.more_errors) lines.push(`… and ${batch.more_errors} more`);
    if (batch.delayed_because) lines.push(`Delayed: ${batch.delayed_because}`);
    if (batch.admission === "window_too_short" && !(batch.status in ENDED)) lines.push("It will not fit its window, by what was seen.");
    const text = lines.join("\n");
    if (this.problemText === text) return;
    this.problemText = text;
    this.problems.replaceChildren(...lines.map((line) => element("div", {}, line)));
  }

  // Each place has one button, whose title may change: who has just pressed it is still there.
  showActs(batch) {
    const isLive = LIVE.includes(batch.status);
    const { completed, failed } = batch.request_counts;
    const wanted = new Map();
    if (isLive) {
      const action = batch.paused_at ? "resume" : "pause";
      wanted.set("pause", [batch.paused_at ? "Resume" : "Pause", () => this.table.change(this, action)]);
      wanted.set("cancel", ["Cancel", () => this.table.cancel(this)]);
    }
    if (batch.status === "in_progress" && completed + failed) {
      wanted.set("results", ["Results so far", () => this.table.get(`v1/batches/${batch.id}/results`, `${batch.id}.jsonl`)]);
    }
    for (const [title, file] of [["Output", batch.output_file_id], ["Errors", batch.error_file_id]]) {
      const name = `${batch.id}-${title.toLowerCase()}.jsonl`;
      if (file) wanted.set(title, [title, () => this.table.get(`v1/files/${file}/content`, name)]);
    }
    for (const [place, button] of this.buttons) {
      if (wanted.has(place)) continue;
      if (button === document.activeElement) byId("batches").focus();
      button.remove();
      this.buttons.delete(place);
    }
    for (const [place, [title, act]] of wanted) {
      let button = this.buttons.get(place);
      if (!button) {
        button = element("button", { type: "button" });
        this.buttons.set(place, button);
        this.acts.append(button);
      }
      say(button, title);
      button.setAttribute("aria-label", `${title}, batch ${batch.id}`);
      button.onclick = act;
    }
  }
}

export class Batches {
  constructor(announce) {
    this.announce = announce;
    this.rows = new Map();
    this.live = [];
    this.older = [];
    byId("older").addEventListener("click", () => this.readOlder());
  }

  clear() {
    this.live = [];
    this.older = [];
    this.hasMore = false;
    this.draw();
  }

  show(frame) {
    // What the newest ones have pushed out of the live part is still shown.
    const ids = new Set(frame.batches.map((one) => one.id));
    if (this.older.length) this.older = [...this.live, ...this.older].filter((one) => !ids.has(one.id));
    else this.hasMore = frame.has_more;
    this.live = frame.batches;
    this.draw();
  }

  draw() {
    const now = Date.now() / 1000;
    const place = byId("batch-rows");
    const all = [...this.live, ...this.older];
    const ids = new Set(all.map((one) => one.id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.node.remove();
      this.rows.delete(id);
    }
    all.forEach((batch, i) => {
      let row = this.rows.get(batch.id);
      if (!row) this.rows.set(batch.id, (row = new Row(batch, this)));
      row.show(batch, now);
      if (place.children[i] !== row.node) place.insertBefore(row.node, place.children[i] || null);
    });
    byId("no-batches").hidden = all.length > 0;
    place.parentElement.hidden = !all.length;
    byId("older").hidden = !this.hasMore;
  }

  async readOlder() {
    const last = [...this.live, ...this.older].at(-1);
    await this.attempt(async () => {
      const page = await call("GET", `v1/batches?limit=50&after=${encodeURIComponent(last.id)}`);
      this.older.push(...page.data.map((one) => ({ ...one, errors: one.errors?.data ?? [], more_errors: 0 })));
      this.hasMore = page.has_more;
      this.draw();
    });
  }

  async change(row, action) {
    await this.attempt(async () => {
      const batch = await call("POST", `v1/batches/${row.id}/${action}`);
      row.show({ ...row.batch, status: batch.status, paused_at: batch.paused_at }, Date.now() / 1000);
      this.announce(`Batch ${row.id}: ${nameStatus(row.batch)}`);
    });
  }

  cancel(row) {
    const { total, completed, failed } = row.batch.request_counts;
    const done = completed + failed;
    const rest = total ? `${countOf(done, "request")} of ${count(total)} ${done === 1 ? "is" : "are"} done and stay in its files; the rest will not run.` : "Its requests will not run.";
    say(byId("cancel-text"), `${row.id}. ${rest} This cannot be undone.`);
    const dialog = byId("cancel-dialog");
    dialog.returnValue = "";
    dialog.onclose = () => dialog.returnValue === "cancel" && this.change(row, "cancel");
    dialog.showModal();
  }

  get(path, name) {
    return this.attempt(() => download(path, name));
  }

  async attempt(act) {
    const problem = byId("batch-problem");
    problem.hidden = true;
    try {
      await act();
    } catch (error) {
      problem.hidden = false;
      say(problem, error.message);
    }
  }
}
