// The live events. Not EventSource: that cannot send a key, and says nothing of a stream that has fallen silent.

import { authorization, toError } from "./api.js";

const SILENT_MS = 15_000;
const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 30_000;

export class LiveStream {
  // on: { event(name, object), state(state, text, retryAtMs) }, with the states connecting, lost, refused.
  constructor(path, on) {
    this.path = path;
    this.on = on;
    this.retryMs = FIRST_RETRY_MS;
    this.round = 0;
    window.addEventListener("online", () => this.isLost && this.start());
  }

  start() {
    this.stop();
    const round = ++this.round;
    this.abort = new AbortController();
    this.isLost = false;
    this.on.state("connecting", "Connecting");
    this.read(this.abort.signal).then(
      () => round === this.round && this.lose("The stream has ended", true),
      (error) => round === this.round && this.fail(error),
    );
  }

  stop() {
    this.round += 1;
    clearTimeout(this.timer);
    clearTimeout(this.watch);
    if (this.abort) this.abort.abort();
  }

  async read(signal) {
    this.listen();
    const response = await fetch(this.path, { headers: authorization(), cache: "no-store", signal });
    if (!response.ok) throw await toError(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.listen();
      text += value;
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) this.take(part);
    }
  }

  take(part) {
    let name = "message";
    let data = "";
    for (const line of part.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (!data) return;
    if (name === "hello") this.retryMs = FIRST_RETRY_MS;
    this.on.event(name, JSON.parse(data));
  }

  listen() {
    clearTimeout(this.watch);
    this.watch = setTimeout(() => {
      this.stop();
      this.lose("Nothing heard");
    }, SILENT_MS);
  }

  fail(error) {
    if (error.status === 401) {
      this.stop();
      this.on.state("refused", error.message);
    } else {
      this.lose(error.status ? error.message : "Disconnected");
    }
  }

  lose(reason, atOnce = false) {
    clearTimeout(this.watch);
    this.isLost = true;
    // Spread, so that not all pages come back in the same moment.
    const waitMs = atOnce ? FIRST_RETRY_MS : this.retryMs * (0.75 + Math.random() / 2);
    this.retryMs = Math.min(2 * this.retryMs, LONGEST_RETRY_MS);
    this.on.state("lost", reason, Date.now() + waitMs);
    this.timer = setTimeout(() => this.start(), waitMs);
  }
}
