// Where a chart's points, bars and labels go: pure functions.

export interface Scale {
  /** The first and the last time, in seconds; the top of the values' axis. */
  from: number;
  until: number;
  top: number;
  width: number;
  height: number;
}

const VALUE_STEPS = [1, 2, 2.5, 5, 10];
const DAY_S = 86_400;
const DAY_STEPS = [1, 2, 3, 4, 7, 14, 30, 60, 90].map((days) => days * DAY_S);
const CLOCK_STEPS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600]; // labels have no seconds

export const x = (scale: Scale, at: number) => round(((at - scale.from) / (scale.until - scale.from || 1)) * scale.width);
export const y = (scale: Scale, value: number) => round(scale.height * (1 - value / scale.top));

/** Round values from 0 up to `top`, about `most` of them at most. */
export function valueTicks(top: number, most: number): number[] {
  const least = top / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(least));
  const step = VALUE_STEPS.map((one) => one * power).find((one) => one >= least) ?? 10 * power;
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, index) => index * step);
}

/** Times from `from` to `until`, at most `most`, at whole minutes, hours or days. `zone`: seconds by which local time is behind UTC. */
export function timeTicks(from: number, until: number, most: number, days: boolean, zone: number): number[] {
  const steps = days ? DAY_STEPS : CLOCK_STEPS;
  const step = steps.find((one) => (until - from) / one <= most) ?? steps.at(-1)!;
  const ticks = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= until; at += step) ticks.push(at);
  return ticks;
}

/** The path of a line, which is broken where a value is null, and of the area below it. */
export function linePaths(scale: Scale, times: readonly number[], values: readonly (number | null)[]): { line: string; area: string } {
  let line = "";
  let area = "";
  let begun = "";
  let end = "";
  const close = () => {
    if (begun) area += `V${scale.height}H${begun}Z`;
    begun = "";
  };
  values.forEach((value, index) => {
    if (value === null) return close();
    end = `${x(scale, times[index]!)}`;
    const point = `${end} ${y(scale, value)}`;
    line += `${begun ? "L" : "M"}${point}`;
    area += begun ? `L${point}` : `M${end} ${scale.height}L${point}`;
    begun ||= end;
    return undefined;
  });
  close();
  return { line, area };
}

/** The path of bars that are centred on their times, each `width` wide. */
export function barPath(scale: Scale, times: readonly number[], values: readonly (number | null)[], width: number): string {
  const bars = values.map((value, index) => (value ? `M${round(x(scale, times[index]!) - width / 2)} ${scale.height}V${y(scale, value)}h${round(width)}V${scale.height}Z` : ""));
  return bars.join("");
}

/** At most `most` points of a line, each the highest of those that it stands for. */
export function thinned(times: readonly number[], values: readonly (number | null)[], most: number): { times: readonly number[]; values: readonly (number | null)[] } {
  const size = Math.ceil(times.length / most);
  if (size <= 1) return { times, values };
  const few: { times: number[]; values: (number | null)[] } = { times: [], values: [] };
  for (let begin = 0; begin < times.length; begin += size) {
    const known = values.slice(begin, begin + size).filter((value) => value !== null);
    few.times.push(times[Math.min(begin + size, times.length) - 1]!);
    few.values.push(known.length ? Math.max(...known) : null);
  }
  return few;
}

/** The index of the time that is nearest to `at`. */
export function nearest(times: readonly number[], at: number): number {
  let best = 0;
  times.forEach((time, index) => {
    if (Math.abs(time - at) < Math.abs(times[best]! - at)) best = index;
  });
  return best;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
