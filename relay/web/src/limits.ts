// A key's limits: as text, and from the form that changes them. What limits there are is generated.

import { compact, date } from "./format";
import { type KeyLimits, LIMITS } from "./generated/api";

export type Limit = (typeof LIMITS)[number];
export type Kind = Limit["kind"];
export type LimitOf<Wanted extends Kind> = Extract<Limit, { kind: Wanted }>;

export function ofKind<Wanted extends Kind>(kind: Wanted): LimitOf<Wanted>[] {
  return LIMITS.filter((limit): limit is LimitOf<Wanted> => limit.kind === kind);
}

/** What of `wanted` is not as in `known`: that alone is told, and stands in the audit log. */
export function differing<Value extends object>(wanted: Value, known: Value): Partial<Value> {
  const names = Object.keys(wanted) as (keyof Value)[];
  const changed = names.filter((name) => JSON.stringify(wanted[name]) !== JSON.stringify(known[name]));
  return Object.fromEntries(changed.map((name) => [name, wanted[name]])) as Partial<Value>;
}

/** In a line, all of them: what is left out would pass for no limit. `now` in seconds. */
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

/** What the form says; the `known` limits have a time of day that its date does not. */
export function limitsOf(form: FormData, known: KeyLimits | null): KeyLimits {
  const values = LIMITS.map((limit) => [limit.name, valueOf(form, limit, known?.[limit.name] ?? null)]);
  return Object.fromEntries(values) as KeyLimits;
}

function valueOf(form: FormData, { name, kind }: Limit, known: KeyLimits[keyof KeyLimits] | null) {
  const text = String(form.get(name) ?? "").trim();
  if (kind === "switch") return form.has(name);
  // A name may have spaces.
  if (kind === "names") return text.split(",").map((one) => one.trim()).filter(Boolean);
  if (kind === "time" && text === day(known as number | null)) return known;
  if (!text) return kind === "rank" ? 0 : null;
  return kind === "time" ? Date.parse(text) / 1000 : Number(text);
}

/** The day in UTC, as an input has it; "" for none. */
export function day(seconds: number | null): string {
  return seconds === null ? "" : new Date(seconds * 1000).toISOString().slice(0, 10);
}
