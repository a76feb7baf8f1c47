// Numbers, times and elements, in words and nodes.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });

export const UNKNOWN = "–";

export function count(number) {
  if (number === null || number === undefined || Number.isNaN(number)) return UNKNOWN;
  if (number >= 10_000_000) return `${(number / 1e6).toFixed(0)}M`;
  if (number >= 100_000) return `${(number / 1e3).toFixed(0)}k`;
  return whole.format(number);
}

export function countOf(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return value < 10 ? `${value.toFixed(1)} ms` : `${whole.format(value)} ms`;
}

export function percent(share) {
  return share === null || share === undefined ? UNKNOWN : `${(100 * share).toFixed(share > 0.995 || share < 0.1 ? 1 : 0)} %`;
}

export function duration(seconds) {
  const value = Math.abs(seconds);
  if (value < 60) return `${Math.round(value)} s`;
  if (value < 5_400) return `${Math.round(value / 60)} min`;
  if (value < 129_600) return `${(value / 3600).toFixed(value < 36_000 ? 1 : 0)} h`;
  return `${Math.round(value / 86_400)} days`;
}

export function timeOf(ms) {
  return clock.format(new Date(ms));
}

export function dayOf(seconds) {
  return day.format(new Date(seconds * 1000));
}

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// Changes nothing where it is the same: a selection and a screen reader's place stay.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function byId(id) {
  return document.getElementById(id);
}
