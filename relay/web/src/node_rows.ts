// The rows of the table of nodes: what is found, and in which order. Pure functions.

import { upstreams } from "./detail";
import { byName } from "./format";
import type { HardwareView, NodeFigures, NodeView } from "./generated/api";

export interface NodeRow {
  node: NodeView;
  figures: NodeFigures | undefined;
  machine: HardwareView | undefined;
}

/** By which value each column sorts; null is always last. */
const VALUES: Record<string, (row: NodeRow) => number | string | null> = {
  name: ({ node }) => node.name,
  state: ({ node }) => node.state,
  models: ({ node }) => node.models.length,
  slots: ({ node }) => (node.slots_total ? node.slots_busy / node.slots_total : node.slots_busy),
  queue: ({ node }) => node.queued,
  speed: ({ figures }) => figures?.tokens_per_s ?? null,
  rtt: ({ figures }) => figures?.rtt_ms ?? null,
  gpu: ({ machine }) => busiest(machine),
  up: ({ node }) => (node.connected_at === null ? null : -node.connected_at),
  version: ({ node }) => node.version || null,
};

/** The use of the busiest GPU in percent; null without one, or where it is not told. */
export function busiest(machine: HardwareView | undefined): number | null {
  const uses = (machine?.now.gpus ?? []).map((gpu) => gpu.use ?? null).filter((use) => use !== null);
  return uses.length ? Math.max(...uses) : null;
}

/** The rows with all words of `filter` in their name, state, models, tags or version. */
export function filtered(rows: readonly NodeRow[], filter: string): NodeRow[] {
  const words = filter.trim().toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter(({ node }) => {
    const text = [node.name, node.state, node.version, ...node.models, ...node.tags].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** The rows by a column, as "speed" or, the highest first, "-speed"; by name where they are equal. */
export function sorted(rows: readonly NodeRow[], by: string): NodeRow[] {
  const down = by.startsWith("-") ? -1 : 1;
  const value = VALUES[by.replace("-", "")] ?? VALUES["name"]!;
  return [...rows].sort((a, b) => down * compare(value(a), value(b), down) || byName(a.node, b.node));
}

function compare(a: number | string | null, b: number | string | null, down: number): number {
  if (a === null || b === null) return down * (Number(a === null) - Number(b === null));
  if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), "en", { numeric: true });
  return a - b;
}

/** How many things are wrong with a node by its own word. */
export function troubles(node: NodeView): number {
  return upstreams(node).filter((upstream) => !upstream.up).length + (node.copied ? 1 : 0);
}
