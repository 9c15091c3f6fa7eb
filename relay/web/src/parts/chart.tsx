// A line chart over time: uPlot in the page's colours, as wide as its container.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { theme } from "../theme";

export interface Line {
  label: string;
  /** The name of a CSS variable. */
  colour: string;
  values: (number | null)[];
  bars?: boolean;
}

const DAY_S = 86_400;
const LEAST = 10; // upper end of the axis of an empty chart
const DAY_STEPS = [DAY_S, 2 * DAY_S, 7 * DAY_S, 30 * DAY_S, 90 * DAY_S];
const CLOCK_STEPS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400]; // labels have no seconds
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

export function Chart(props: { times: number[]; lines: Line[]; height?: number; label: string; days?: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const data = [props.times, ...props.lines.map((line) => line.values)] as uPlot.AlignedData;
  // A bar is centred on its time.
  const side = props.lines.some((line) => line.bars) ? ((props.times[1] ?? 0) - (props.times[0] ?? 0)) / 2 : 0;
  const shape = `${theme.value} ${side} ${props.lines.map((line) => line.label).join()}`;

  useEffect(() => {
    const element = place.current;
    if (!element) return undefined;
    const made = new uPlot(options(element, props.lines, props.height ?? 200, props.days ?? false, side), data, element);
    plot.current = made;
    const watch = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: props.height ?? 200 }));
    watch.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => made.redraw();
    dark.addEventListener("change", redraw);
    return () => {
      dark.removeEventListener("change", redraw);
      watch.disconnect();
      made.destroy();
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(data), [props.times, props.lines]);
  return <div class="chart" ref={place} role="img" aria-label={props.label} />;
}

function options(element: HTMLElement, lines: Line[], height: number, days: boolean, side: number): uPlot.Options {
  const colour = (name: string) => getComputedStyle(element).getPropertyValue(name).trim();
  const axis = (): uPlot.Axis => ({
    stroke: () => colour("--muted"),
    font: "12px system-ui, sans-serif",
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { show: false },
  });
  return {
    width: element.clientWidth,
    height,
    padding: [10, 20, 0, 0],
    cursor: { y: false },
    legend: { show: lines.length > 1 },
    scales: { x: { time: true, range: (_, min, max) => [min - side, max + side] }, y: { range: (_, __, max) => [0, Math.max(max * 1.1, LEAST)] } },
    axes: [
      { ...axis(), space: 70, values: (_, ticks) => ticks.map((tick) => (days ? day : clock).format(tick * 1000)), incrs: days ? DAY_STEPS : CLOCK_STEPS, size: 28 },
      { ...axis(), size: 48, values: (_, ticks) => ticks.map((tick) => Intl.NumberFormat("en", { notation: "compact" }).format(tick)) },
    ],
    series: [
      { value: days ? "{YYYY}-{MM}-{DD}" : "{HH}:{mm}:{ss}" },
      ...lines.map((line): uPlot.Series => ({
        label: line.label,
        stroke: () => colour(line.colour),
        fill: () => colour(line.colour) + "26",
        width: line.bars ? 0 : 1.5,
        points: { show: false },
        ...(line.bars && uPlot.paths.bars ? { paths: uPlot.paths.bars({ size: [0.6, 40] }), fill: () => colour(line.colour) } : {}),
      })),
    ],
  };
}
