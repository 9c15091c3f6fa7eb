import { deepEqual } from "node:assert/strict";
import { test } from "node:test";
import { sparkline } from "../../../relay/web/src/machine";

test("a history is a line for each part of it that was told", () => {
  deepEqual(sparkline([0, 50, 100], 20, 12), ["0,11 10,6 20,1"]);
  deepEqual(sparkline([null, 0, null, 100, 100], 40, 12), ["10,11 11,11", "30,1 40,1"]);
  deepEqual(sparkline([null, null], 40, 12), []);
  deepEqual(sparkline([], 40, 12), []);
  deepEqual(sparkline([-5, 500], 10, 12), ["0,11 10,1"]);
});
