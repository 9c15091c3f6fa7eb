// Rows that are updated by differences, and pages of long lists: pure functions.

import type { Difference as AnyDifference } from "./generated/api";

export type Difference<Row> = Omit<AnyDifference, "set"> & { set?: Row[] };

/** `rows` with a difference applied. */
export function applied<Row extends { id: string }>(
  rows: ReadonlyMap<string, Row>,
  change: Difference<Row>,
): ReadonlyMap<string, Row> {
  const next = new Map(change.full ? [] : rows);
  for (const row of change.set ?? []) next.set(row.id, row);
  for (const id of change.gone ?? []) next.delete(id);
  return next;
}

/** Token counts by request, with a difference applied. */
export function counted(
  counts: ReadonlyMap<string, number>,
  change: Difference<unknown>,
): ReadonlyMap<string, number> {
  const next = new Map(change.full ? [] : counts);
  for (const [id, count] of Object.entries(change.tokens ?? {})) next.set(id, count);
  for (const id of change.gone ?? []) next.delete(id);
  return next;
}

/** The page number `at` of `rows`, or the last page. */
export function pageOf<Row>(rows: readonly Row[], at: number, size: number): { at: number; shown: readonly Row[] } {
  const last = Math.max(0, Math.ceil(rows.length / size) - 1);
  const page = Math.min(at, last);
  return { at: page, shown: rows.slice(page * size, (page + 1) * size) };
}
