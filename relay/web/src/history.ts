// The last hour of the relay's pulse, for the charts: pure functions.

import type { PulseView } from "./generated/api";

export interface History {
  step: number;
  until: number;
  rates: number[];
  running: number[];
}

/** `history` with a new beat at its end and without the oldest; unchanged if it has the beat already. */
export function withPulse(history: History, told: PulseView): History {
  if (told.at <= history.until) return history;
  return {
    ...history,
    until: told.at,
    rates: [...history.rates.slice(1), told.tokens_per_s],
    running: [...history.running.slice(1), told.running],
  };
}

/** `rates` without leading zeros, but at least the last `least` of them. */
export function sinceFirst(rates: readonly number[], least: number): readonly number[] {
  const first = rates.findIndex((rate) => rate > 0);
  const used = first < 0 ? 0 : rates.length - first;
  return rates.slice(Math.max(0, rates.length - Math.max(least, Math.ceil(used * 1.1))));
}

export interface Step {
  at: number;
  prompt: number;
  completion: number;
}

/** A point for each `step` seconds from `since` to `until`; zero where there is no usage. */
export function everyStep(
  rows: readonly { group: string; prompt_tokens: number; completion_tokens: number }[],
  since: number,
  until: number,
  step: number,
): Step[] {
  const used = new Map(rows.map((row) => [Date.parse(row.group) / 1000, row]));
  const points = [];
  for (let at = Math.floor(since / step) * step; at <= until; at += step) {
    const row = used.get(at);
    points.push({ at, prompt: row?.prompt_tokens ?? 0, completion: row?.completion_tokens ?? 0 });
  }
  return points;
}
