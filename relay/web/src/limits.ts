// A key's limits: format them as text, and read them from the form. The list of limits is generated.

import { compact, date } from "./format";
import { type KeyLimits, LIMITS } from "./generated/api";

export type Limit = (typeof LIMITS)[number];
export type Kind = Limit["kind"];
export type LimitOf<Wanted extends Kind> = Extract<Limit, { kind: Wanted }>;

export function ofKind<Wanted extends Kind>(kind: Wanted): LimitOf<Wanted>[] {
  return LIMITS.filter((limit): limit is LimitOf<Wanted> => limit.kind === kind);
}

/** The fields of `wanted` that differ from `known`: only these are sent, and so logged in the audit log. */
export function differing<Value extends object>(wanted: Value, known: Value): Partial<Value> {
  const names = Object.keys(wanted) as (keyof Value)[];
  const changed = names.filter((name) => JSON.stringify(wanted[name]) !== JSON.stringify(known[name]));
  return Object.fromEntries(changed.map((name) => [name, wanted[name]])) as Partial<Value>;
}

/** All limits in one line, since an omitted one would look like no limit. `now` in seconds. */
export function limitsText(limits: KeyLimits, now: number): string {
  const timesFirst = [...ofKind("time"), ...LIMITS.filter((limit) => limit.kind !== "time")];
  const texts = timesFirst.map((limit) => valueText(limit, limits[limit.name], now));
  return texts.filter(Boolean).join(" · ") || "none";
}

function valueText({ kind, unit }: Limit, value: KeyLimits[keyof KeyLimits], now: number): string {
  if (Array.isArray(value)) return value.length ? `${unit} ${value.join(", ")}` : "";
  if (typeof value === "boolean") return value ? unit : "";
  if (value === null) return "";
  if (kind === "time") return `${value <= now ? "expired" : unit} ${date(value)}`;
  if (kind === "rank") return value ? `${unit} ${value}` : "";
  return `${compact(value)} ${unit}`;
}

/** Read the form. Its date has no time of day; an unchanged date keeps the time of `known`. */
export function limitsOf(form: FormData, known: KeyLimits | null): KeyLimits {
  const values = LIMITS.map((limit) => [limit.name, valueOf(form, limit, known?.[limit.name] ?? null)]);
  return Object.fromEntries(values) as KeyLimits;
}

function valueOf(form: FormData, { name, kind }: Limit, known: KeyLimits[keyof KeyLimits] | null) {
  const text = String(form.get(name) ?? "").trim();
  if (kind === "switch") return form.has(name);
  // Names may contain spaces.
  if (kind === "names") return text.split(",").map((one) => one.trim()).filter(Boolean);
  if (kind === "time" && text === day(known as number | null)) return known;
  if (!text) return kind === "rank" ? 0 : null;
  return kind === "time" ? Date.parse(text) / 1000 : Number(text);
}

/** The day in UTC, as the value of a date input; "" for none. */
export function day(seconds: number | null): string {
  return seconds === null ? "" : new Date(seconds * 1000).toISOString().slice(0, 10);
}
