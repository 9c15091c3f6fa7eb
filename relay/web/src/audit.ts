// Entries of the audit log as text.

import { date } from "./format";
import type { AuditView } from "./generated/api";

/** The details of a change, such as `rpm 60, models qwen, gemma`. */
export function details(entry: Pick<AuditView, "detail">): string {
  const said = Object.entries(entry.detail).filter(([name]) => name !== "name");
  return said.map(([name, value]) => `${name} ${name.endsWith("_at") && typeof value === "number" ? date(value) : shown(value)}`).join(", ");
}

function shown(value: unknown): string {
  if (value === null || (Array.isArray(value) && !value.length)) return "none";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (Array.isArray(value)) return value.map(shown).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
