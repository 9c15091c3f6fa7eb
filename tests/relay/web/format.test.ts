import { deepEqual, equal } from "node:assert/strict";
import { test } from "node:test";
import { byName, bytes, compact, count, ms, rate, span } from "../../../relay/web/src/format";

test("what is not known is a dash and not a zero", () => {
  for (const say of [count, compact, rate, ms, bytes]) deepEqual([say(null), say(undefined)], ["–", "–"]);
  equal(count(0), "0");
});

test("numbers are short enough for a column", () => {
  deepEqual([count(12_345), compact(12_345), compact(999)], ["12,345", "12.3K", "999"]);
  deepEqual([rate(0), rate(9.94), rate(10.4), rate(1234.5)], ["0", "9.9", "10", "1,235"]);
});

test("times change their unit where the next one is shorter", () => {
  deepEqual([ms(0.4), ms(999), ms(1000), ms(9_999), ms(12_345)], ["0.4 ms", "999 ms", "1.00 s", "10.00 s", "12.3 s"]);
  const spans = [-5, 59.9, 60, 3599, 3600, 172_799, 172_800].map(span);
  deepEqual(spans, ["0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 days"]);
});

test("sizes over two gibibytes are no negative numbers", () => {
  deepEqual([bytes(1 << 30), bytes(24 * 2 ** 30), bytes(5 * 2 ** 40)], ["1.0 GiB", "24.0 GiB", "5120.0 GiB"]);
  deepEqual([bytes(0), bytes(2048), bytes(1.5 * 2 ** 20), bytes(300 * 2 ** 20)], ["0 KiB", "2 KiB", "1.5 MiB", "300 MiB"]);
});

test("names stand in the order of an alphabet, whatever their case", () => {
  const names = ["b", "A", "a", "B"].map((name) => ({ name })).sort(byName);
  deepEqual(names.map(({ name }) => name), ["a", "A", "b", "B"]);
});
