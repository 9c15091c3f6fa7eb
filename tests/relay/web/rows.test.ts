import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";
import { applied, counted, pageOf } from "../../../relay/web/src/rows";

const row = (id: string, at = 0) => ({ id, at });
const known = new Map([["a", row("a")], ["b", row("b")]]);

test("a difference sets and drops rows, and leaves the others and the old set as they were", () => {
  const next = applied(known, { set: [row("b", 2), row("c")], gone: ["a"] });
  deepEqual([...next.values()], [row("b", 2), row("c")]);
  deepEqual([...known.keys()], ["a", "b"]);
});

test("a whole replaces what was known, also by nothing", () => {
  deepEqual([...applied(known, { full: true, set: [row("z")] }).keys()], ["z"]);
  equal(applied(known, { full: true }).size, 0);
});

test("a row that goes and was never known is no error", () => {
  equal(applied(known, { gone: ["nobody"] }).size, 2);
});

test("a request's tokens go with it, and a whole begins anew", () => {
  const counts = counted(new Map(), { tokens: { a: 1, b: 2 } });
  deepEqual([...counted(counts, { tokens: { a: 5 }, gone: ["b"] })], [["a", 5]]);
  deepEqual([...counted(counts, { full: true, tokens: { c: 3 } })], [["c", 3]]);
});

test("a page past the end is the last one there is", () => {
  const rows = [1, 2, 3, 4, 5];
  deepEqual(pageOf(rows, 1, 2), { at: 1, shown: [3, 4] });
  deepEqual(pageOf(rows, 9, 2), { at: 2, shown: [5] });
  deepEqual(pageOf([], 3, 2), { at: 0, shown: [] });
  deepEqual(pageOf(rows.slice(0, 4), 9, 2), { at: 1, shown: [3, 4] });
});
