// A key's limits: format them as text, and read them from the form.

import type { Limits } from "./api";
import { compact, date } from "./format";

export const NUMBERS = [
  ["rpm", "Requests per minute"],
  ["tpm", "Tokens per minute"],
  ["concurrency", "Requests at once"],
  ["monthly_tokens", "Tokens per month"],
] as const;
export const MAX_PRIORITY = 3; // the queue uses priorities from -3 to 3

export const NO_LIMITS: Limits = {
  rpm: null,
  tpm: null,
  concurrency: null,
  monthly_tokens: null,
  expires_at: null,
  models: [],
  nodes: [],
  local_only: false,
  priority: 0,
  continue: false,
};

/** The fields of `wanted` that differ from `known`: only these are sent, and so logged in the audit log. */
export function differing<Kind extends object>(wanted: Kind, known: Kind): Partial<Kind> {
  const names = Object.keys(wanted) as (keyof Kind)[];
  const changed = names.filter((name) => JSON.stringify(wanted[name]) !== JSON.stringify(known[name]));
  return Object.fromEntries(changed.map((name) => [name, wanted[name]])) as Partial<Kind>;
}

/** All limits in one line, since an omitted one would look like no limit. `now` in seconds. */
export function limitsText(limits: Limits, now: number): string {
  const { rpm, tpm, concurrency, monthly_tokens, expires_at, models, nodes, priority } = limits;
  const said = [
    expires_at !== null && `${expires_at <= now ? "expired" : "until"} ${date(expires_at)}`,
    rpm !== null && `${compact(rpm)} req/min`,
    tpm !== null && `${compact(tpm)} tok/min`,
    concurrency !== null && `${concurrency} at once`,
    monthly_tokens !== null && `${compact(monthly_tokens)} tok/month`,
    models.length && `only ${models.join(", ")}`,
    nodes.length && `only on ${nodes.join(", ")}`,
    limits.local_only && "own nodes only",
    priority !== 0 && `priority ${priority}`,
    limits.continue && "continued",
  ].filter(Boolean);
  return said.join(" · ") || "none";
}

/** Read the form. Its date has no time of day; an unchanged date keeps the time of `known`. */
export function limitsOf(form: FormData, known: Limits | null): Limits {
  const text = (name: string) => String(form.get(name) ?? "").trim();
  const number = (name: string) => (text(name) ? Number(text(name)) : null);
  // Names may contain spaces.
  const names = (name: string) => text(name).split(",").map((one) => one.trim()).filter(Boolean);
  const expires = text("expires_at");
  const kept = known?.expires_at ?? null;
  return {
    rpm: number("rpm"),
    tpm: number("tpm"),
    concurrency: number("concurrency"),
    monthly_tokens: number("monthly_tokens"),
    expires_at: expires === day(kept) ? kept : expires ? Date.parse(expires) / 1000 : null,
    models: names("models"),
    nodes: names("nodes"),
    local_only: form.has("local_only"),
    priority: number("priority") ?? 0,
    continue: form.has("continue"),
  };
}

/** The day in UTC, as the value of a date input; "" for none. */
export function day(seconds: number | null): string {
  return seconds === null ? "" : new Date(seconds * 1000).toISOString().slice(0, 10);
}
