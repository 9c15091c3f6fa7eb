import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";
import { barPath, linePaths, nearest, thinned, timeTicks, valueTicks } from "../../../relay/web/src/plot";

const scale = { from: 0, until: 100, top: 10, width: 200, height: 50 };

test("the values on the axis are round, begin at 0 and are no more than there is room for", () => {
  deepEqual(valueTicks(11, 2), [0, 10]);
  deepEqual(valueTicks(100, 5), [0, 20, 40, 60, 80, 100]);
  deepEqual(valueTicks(0.9, 3), [0, 0.5]);
  for (const top of [0.01, 1, 7, 99, 12_345, 1e9]) equal(valueTicks(top, 4).length <= 5, true, String(top));
});

test("the times on the axis are whole hours of the reader's own time zone", () => {
  const from = Date.UTC(2026, 10, 29, 10, 7) / 1000;
  const india = -5.5 * 3600;
  const ticks = timeTicks(from, from + 6 * 3600, 8, false, india);
  deepEqual(ticks.map((at) => (at - india) % 3600), ticks.map(() => 0));
  equal(ticks.length, 6);
});

test("however long the time is, there are not more labels than there is room for, and at least one a year", () => {
  for (const days of [1, 7, 30, 365]) {
    const ticks = timeTicks(0, days * 86_400, 4, true, 0);
    equal(ticks.length <= 5 && ticks.length > 0, true, String(days));
  }
});

test("a line is broken where nothing is known, and does not fall to zero", () => {
  const { line, area } = linePaths(scale, [0, 25, 50, 75], [10, 5, null, 10]);
  equal(line, "M0 0L50 25M150 0");
  equal(area, "M0 50L0 0L50 25V50H0ZM150 50L150 0V50H150Z");
});

test("a bar stands on the axis and is centred on its time, and nothing has none", () => {
  equal(barPath(scale, [50, 75], [10, 0], 8), "M96 50V0h8V50Z");
});

test("a line of more points than pixels keeps its peaks", () => {
  const times = Array.from({ length: 1000 }, (_, index) => index);
  const values = times.map((at) => (at === 501 ? 9 : 1));
  const few = thinned(times, values, 100);
  equal(few.times.length, 100);
  equal(Math.max(...few.values.map((value) => value ?? 0)), 9);
  equal(few.times.at(-1), 999);
  equal(thinned(times, values, 5000).values, values);
  deepEqual(thinned([1, 2], [null, null], 1).values, [null]);
});

test("what is pointed at is the nearest time", () => {
  equal(nearest([0, 10, 20], 14), 1);
  equal(nearest([0, 10, 20], 999), 2);
});
