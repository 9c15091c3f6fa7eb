// A chart over time, as wide as its container: lines or bars, in the page's colours.

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { compact, rate } from "../format";
import { type Scale, barPath, linePaths, nearest, thinned, timeTicks, valueTicks, x, y } from "../plot";

export interface Line {
  label: string;
  /** The name of a CSS variable. */
  colour: string;
  values: readonly (number | null)[];
  bars?: boolean;
}

const LEAST = 10; // upper end of the axis of an empty chart
const LEFT = 44;
const RIGHT = 16;
const TOP = 8;
const BOTTOM = 24;
const TICK_PX = 64; // between two times
const VALUE_PX = 44; // between two values
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const seconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

export function Chart(props: { times: readonly number[]; lines: readonly Line[]; height?: number; label: string; days?: boolean; top?: number }) {
  const { times, lines, days = false } = props;
  const place = useRef<HTMLDivElement>(null);
  const width = useSignal(0);
  const pointed = useSignal<number | null>(null);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => (width.value = Math.floor(entry!.contentRect.width)));
    watch.observe(place.current!);
    return () => watch.disconnect();
  }, []);
  const height = props.height ?? 200;
  // A bar is centred on its time.
  const side = lines.some((line) => line.bars) ? ((times[1] ?? 0) - (times[0] ?? 0)) / 2 : 0;
  const most = lines.reduce((top, line) => line.values.reduce((all: number, value) => Math.max(all, value ?? 0), top), 0);
  const scale: Scale = {
    from: (times[0] ?? 0) - side,
    until: (times.at(-1) ?? 1) + side,
    top: props.top ?? Math.max(most * 1.1, LEAST),
    width: Math.max(1, width.value - LEFT - RIGHT),
    height: height - TOP - BOTTOM,
  };
  const point = (event: PointerEvent) => {
    const from = (event.currentTarget as Element).getBoundingClientRect().left + LEFT;
    pointed.value = nearest(times, scale.from + ((event.clientX - from) / scale.width) * (scale.until - scale.from));
  };
  const at = pointed.value === null ? undefined : times[pointed.value];
  return (
    <div class="chart" ref={place} style={{ minHeight: height }} onPointerMove={point} onPointerLeave={() => (pointed.value = null)}>
      {width.value > 0 && (
        <svg width={width.value} height={height} role="img" aria-label={props.label}>
          <g transform={`translate(${LEFT} ${TOP})`}>
            <Axes scale={scale} days={days} />
            {lines.map((line) => <Shape key={line.label} line={line} scale={scale} times={times} />)}
            {at !== undefined && <path class="pointed" d={`M${x(scale, at)} 0V${scale.height}`} />}
          </g>
        </svg>
      )}
      {(lines.length > 1 || at !== undefined) && (
        <p class={lines.length > 1 ? "legend" : "legend over"}>
          {at !== undefined && <span>{(days ? day : seconds).format(at * 1000)}</span>}
          {lines.map((line) => (
            <span key={line.label}>
              <i style={{ background: `var(${line.colour})` }} /> {line.label}
              {at !== undefined && `: ${rate(line.values[pointed.value!] ?? null)}`}
            </span>
          ))}
        </p>
      )}
    </div>
  );
}

function Axes({ scale, days }: { scale: Scale; days: boolean }) {
  const zone = days ? 0 : new Date(scale.until * 1000).getTimezoneOffset() * 60;
  const times = timeTicks(scale.from, scale.until, Math.max(2, Math.floor(scale.width / TICK_PX)), days, zone);
  return (
    <>
      {valueTicks(scale.top, Math.floor(scale.height / VALUE_PX)).map((value) => (
        <g key={value}>
          <path class="grid-line" d={`M0 ${y(scale, value)}H${scale.width}`} />
          <text class="value" x={-8} y={y(scale, value)} dy="0.32em">{compact(value)}</text>
        </g>
      ))}
      {times.map((time) => <text key={time} x={x(scale, time)} y={scale.height + 18}>{(days ? day : clock).format(time * 1000)}</text>)}
    </>
  );
}

function Shape({ line, scale, times }: { line: Line; scale: Scale; times: readonly number[] }) {
  const colour = `var(${line.colour})`;
  if (line.bars) return <path d={barPath(scale, times, line.values, Math.min(40, (0.6 * scale.width) / times.length))} fill={colour} />;
  const few = thinned(times, line.values, scale.width);
  const { line: stroke, area } = linePaths(scale, few.times, few.values);
  return (
    <>
      <path d={area} fill={colour} fill-opacity="0.15" />
      <path class="stroke" d={stroke} stroke={colour} />
    </>
  );
}
