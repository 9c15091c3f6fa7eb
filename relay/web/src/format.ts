// Format numbers and times for people.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value: number | null | undefined) => (value == null ? "–" : whole.format(value));
export const compact = (value: number | null | undefined) => (value == null ? "–" : short.format(value));
export const rate = (value: number | null | undefined) =>
  value == null ? "–" : value > 0 && value < 10 ? value.toFixed(1) : whole.format(Math.round(value));

export function ms(value: number | null | undefined): string {
  if (value == null) return "–";
  if (value < 1000) return `${value > 0 && value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  return `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`;
}

export function bytes(value: number | null | undefined): string {
  if (value == null) return "–";
  if (value >= 1 << 30) return `${(value / (1 << 30)).toFixed(1)} GiB`;
  if (value < 1 << 20) return `${Math.round(value / 1024)} KiB`;
  return `${(value / (1 << 20)).toFixed(value < 10 << 20 ? 1 : 0)} MiB`;
}

export function span(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172_800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} days`;
}

// Created once: creating one takes as long as formatting a table with it.
const moment = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
export const date = (seconds: number) => moment.format(seconds * 1000);

const shortMoment = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
/** A time without its year, to the second. */
export const briefly = (seconds: number) => shortMoment.format(seconds * 1000);

/** `text` in at most `most` characters: its beginning and its end tell similar names apart. */
export function cutInTheMiddle(text: string, most: number): string {
  if (text.length <= most) return text;
  const end = Math.floor((most - 1) / 2);
  return `${text.slice(0, most - 1 - end)}…${text.slice(-end)}`;
}

const letters = new Intl.Collator("en", { numeric: true });
export const byName = (a: { name: string }, b: { name: string }) => letters.compare(a.name, b.name);
