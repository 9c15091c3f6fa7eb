// A key's limits: as text, and from the form that changes them.

import type { Limits } from "./api";
import { compact, date } from "./format";

export const NUMBERS = [
  ["rpm", "Requests per minute"],
  ["tpm", "Tokens per minute"],
  ["concurrency", "Requests at once"],
  ["monthly_tokens", "Tokens per month"],
] as const;
export const MAX_PRIORITY = 3; // steps that count in the queue, either way

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

/** What of `wanted` is not as in `known`: that alone is told, and stands in the audit log. */
export function differing<Kind extends object>(wanted: Kind, known: Kind): Partial<Kind> {
  const names = Object.keys(wanted) as (keyof Kind)[];
  const changed = names.filter((name) => JSON.stringify(wanted[name]) !== JSON.stringify(known[name]));
  return Object.fromEntries(changed.map((name) => [name, wanted[name]])) as Partial<Kind>;
}

/** In a line, all of them: what is left out would pass for no limit. `now` in seconds. */
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

/** What the form says; the `known` limits have a time of day that its date does not. */
export function limitsOf(form: FormData, known: Limits | null): Limits {
  const text = (name: string) => String(form.get(name) ?? "").trim();
  const number = (name: string) => (text(name) ? Number(text(name)) : null);
  // A name may have spaces.
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

/** The day in UTC, as an input has it; "" for none. */
export function day(seconds: number | null): string {
  return seconds === null ? "" : new Date(seconds * 1000).toISOString().slice(0, 10);
}
