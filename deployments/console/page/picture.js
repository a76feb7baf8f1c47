// Pictures that move: a lane for each replica, and the latencies. Time goes to the left, now is at the right.

const SPAN_MS = 90_000;
const GAP_MS = 5_000; // Of a longer time without figures nothing is drawn.
const FRAME_MS = 33;
const CALM_MS = 2_000; // With reduced motion.
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

const colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["line", "text", "quiet", "online", "offline", "wrong", "good", "online-fill", "offline-fill"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.samples = [];
    this.isSeen = false;
    this.top = 0;
  }

  add(sample) {
    const last = this.samples.at(-1);
    if (last && sample.at - last.at > GAP_MS) this.samples.push({ ...this.nothing, at: last.at + 1_000 });
    this.samples.push(sample);
    while (this.samples.length > 2 && this.samples[1].at < sample.at - SPAN_MS - 5_000) this.samples.shift();
  }

  // One more sample than needed, so that what enters at the right is known before it shows.
  begin(now) {
    const { canvas, context } = this;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const x = (at) => width - ((now - at) / SPAN_MS) * width;
    return { context, width, height, x };
  }

  // The scale follows its aim little by little, so that nothing jumps.
  scale(aim) {
    this.top = !this.top || still.matches ? aim : this.top + (aim - this.top) * (aim > this.top ? 0.25 : 0.04);
    return this.top;
  }
}

export class Lane extends Picture {
  nothing = { online: 0, offline: 0, window: 0 };

  constructor(canvas) {
    super(canvas);
    this.marks = [];
  }

  mark(at, kind) {
    this.marks.push({ at, kind });
    if (this.marks.length > 400) this.marks.shift();
  }

  draw(now) {
    const { context, width, height, x } = this.begin(now);
    const room = height - 14;
    const most = Math.max(4, ...this.samples.map((one) => one.online + Math.max(one.offline, one.window)));
    const unit = room / this.scale(most * 1.1);
    const y = (requests) => height - requests * unit;
    grid(context, width, height, x, now);
    this.area(context, x, y, () => 0, (one) => one.online, colours["online-fill"], now);
    this.area(context, x, y, (one) => one.online, (one) => one.online + one.offline, colours["offline-fill"], now);
    context.setLineDash([4, 3]);
    context.strokeStyle = colours.quiet;
    context.lineWidth = 1;
    this.path(context, x, y, (one) => one.online + one.window, now);
    context.stroke();
    context.setLineDash([]);
    for (const mark of this.marks) {
      const at = x(mark.at);
      if (at < -6 || at > width + 6) continue;
      drawMark(context, at, height, mark.kind);
    }
  }

  area(context, x, y, low, high, colour, now) {
    if (!this.samples.length) return;
    context.fillStyle = colour;
    this.path(context, x, y, high, now);
    for (let i = this.samples.length - 1; i >= 0; i -= 1) {
      const one = this.samples[i];
      context.lineTo(x(this.endOf(i, now)), y(low(one)));
      context.lineTo(x(one.at), y(low(one)));
    }
    context.closePath();
    context.fill();
  }

  // The newest counts stand until others come, for a while.
  endOf(i, now) {
    const next = this.samples[i + 1];
    if (next) return next.at;
    const { at } = this.samples[i];
    return now - at < GAP_MS ? Math.max(at, now) : at;
  }

  // Counts change in steps.
  path(context, x, y, value, now) {
    context.beginPath();
    this.samples.forEach((one, i) => {
      if (i === 0) context.moveTo(x(one.at), y(value(one)));
      else context.lineTo(x(one.at), y(value(one)));
      context.lineTo(x(this.endOf(i, now)), y(value(one)));
    });
  }
}

export class Chart extends Picture {
  nothing = { value: null };

  constructor(canvas, colour) {
    super(canvas);
    this.colour = colour;
  }

  draw(now) {
    const { context, width, height, x } = this.begin(now);
    const objective = this.objective || 0;
    const most = Math.max(objective * 1.35, ...this.samples.map((one) => one.value ?? 0), 1);
    const unit = (height - 4) / this.scale(Math.min(most, objective ? objective * 4 : most));
    const y = (value) => height - 1 - value * unit;
    grid(context, width, height, x, now);
    if (objective) {
      context.setLineDash([4, 3]);
      context.strokeStyle = colours.quiet;
      context.beginPath();
      context.moveTo(0, y(objective));
      context.lineTo(width, y(objective));
      context.stroke();
      context.setLineDash([]);
    }
    // Twice, so that what is above the objective has another colour.
    const limit = objective ? y(objective) : 0;
    this.clipped(context, [0, limit, width, height], () => this.line(context, x, y, colours[this.colour]));
    if (objective) this.clipped(context, [0, -height, width, limit + height], () => this.line(context, x, y, colours.wrong));
  }

  clipped(context, [left, top, width, height], draw) {
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    draw();
    context.restore();
  }

  line(context, x, y, colour) {
    context.strokeStyle = colour;
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    context.beginPath();
    let isOpen = false;
    for (const { at, value } of this.samples) {
      if (value === null) isOpen = false;
      else if (isOpen) context.lineTo(x(at), y(value));
      else {
        context.moveTo(x(at), y(value));
        isOpen = true;
      }
    }
    context.stroke();
  }
}

function grid(context, width, height, x, now) {
  context.strokeStyle = colours.line;
  context.lineWidth = 1;
  context.beginPath();
  for (let at = Math.floor(now / 15_000) * 15_000; at > now - SPAN_MS; at -= 15_000) {
    const place = Math.round(x(at)) + 0.5;
    context.moveTo(place, 0);
    context.lineTo(place, height);
  }
  context.stroke();
}

function drawMark(context, at, height, kind) {
  const isStop = kind === "stop" || kind === "preempt";
  context.fillStyle = context.strokeStyle = isStop ? colours.wrong : colours.good;
  context.globalAlpha = 0.2;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(at, 9);
  context.lineTo(at, height);
  context.stroke();
  context.globalAlpha = 1;
  context.beginPath();
  if (isStop) {
    context.moveTo(at - 4, 1);
    context.lineTo(at + 4, 1);
    context.lineTo(at, 8);
  } else {
    context.arc(at, 5, 3.5, 0, 2 * Math.PI);
  }
  context.fill();
}

// Draws what is in view, and nothing while the tab is hidden. While nothing is heard, time stands still.
export class Stage {
  constructor() {
    this.delayMs = 0;
    this.pictures = new Map();
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const picture = this.pictures.get(target);
        if (picture) picture.isSeen = isIntersecting;
      }
    });
    this.stoppedAt = null;
    this.drawn = 0;
    readColours();
    dark.addEventListener("change", () => {
      readColours();
      this.drawn = 0;
    });
    const step = (now) => {
      requestAnimationFrame(step);
      if (now - this.drawn < (still.matches ? CALM_MS : FRAME_MS)) return;
      this.drawn = now;
      this.draw(this.stoppedAt ?? performance.now());
    };
    requestAnimationFrame(step);
  }

  add(picture) {
    this.pictures.set(picture.canvas, picture);
    this.observer.observe(picture.canvas);
  }

  remove(picture) {
    this.pictures.delete(picture.canvas);
    this.observer.unobserve(picture.canvas);
  }

  stop() {
    this.stoppedAt ??= performance.now();
  }

  go() {
    this.stoppedAt = null;
  }

  draw(now) {
    for (const picture of this.pictures.values()) if (picture.isSeen) picture.draw(now - this.delayMs);
  }
}
