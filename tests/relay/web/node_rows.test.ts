import { deepEqual } from "node:assert/strict";
import { test } from "node:test";
import type { NodeView } from "../../../relay/web/src/generated/api";
import { type NodeRow, filtered, sorted } from "../../../relay/web/src/node_rows";

const row = (name: string, speed: number | null, change: Partial<NodeView> = {}): NodeRow => ({
  node: {
    ...{ id: name, name, state: "ready", models: ["qwen3:8b"], serving: [], slots_total: 4, slots_busy: 1, queued: 0, reconnects: 0 },
    ...{ connected_at: 5, version: "0.1.0", tags: [], may_deploy: true, joined_at: 1, detail: {}, copied: false, agent: "", slots_set: {} },
    ...change,
  },
  figures: speed === null ? undefined : { id: name, tokens_per_s: speed, rtt_ms: null },
  machine: undefined,
});
const names = (rows: readonly NodeRow[]) => rows.map(({ node }) => node.name);

test("names with numbers are in the order in which people count", () => {
  deepEqual(names(sorted([row("box-10", 1), row("box-9", 1), row("attic", 1)], "name")), ["attic", "box-9", "box-10"]);
});

test("what is not known is last, whichever way the column is sorted", () => {
  const rows = [row("quiet", null), row("slow", 1), row("fast", 90)];
  deepEqual(names(sorted(rows, "-speed")), ["fast", "slow", "quiet"]);
  deepEqual(names(sorted(rows, "speed")), ["slow", "fast", "quiet"]);
});

test("equal rows stay in the order of their names, so that they do not jump", () => {
  const rows = [row("c", 5), row("a", 5), row("b", 5)];
  deepEqual(names(sorted(rows, "-speed")), ["a", "b", "c"]);
});

test("an unknown column of an old address sorts by name", () => {
  deepEqual(names(sorted([row("b", 1), row("a", 2)], "height")), ["a", "b"]);
});

test("all words of a filter must be there, in any of the fields", () => {
  const rows = [row("box", 1), row("attic", 1, { state: "offline" }), row("shed", 1, { models: ["gemma"] })];
  deepEqual(names(filtered(rows, " QWEN ready")), ["box"]);
  deepEqual(names(filtered(rows, "offline")), ["attic"]);
  deepEqual(names(filtered(rows, "")), ["box", "attic", "shed"]);
});
