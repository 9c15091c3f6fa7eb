// How busy a node's machine is: its processor and memory, each GPU, and a line of the last quarter hour.

import { bytes, span } from "../format";
import type { GpuNow, HardwareView } from "../generated/api";
import { sparkline } from "../machine";
import { hardware, pulse, relayNow } from "../live";

const WIDTH = 120;
const HEIGHT = 22;
const FRESH_S = 45; // three times as long as a node may be silent of its machine

/** Drawn again when that node's machine has told something, which its card need not be. */
export function Machine({ node }: { node: string }) {
  const row = hardware.value.get(node);
  if (!row) return null;
  const { now } = row;
  return (
    <div class="machine" role="group" aria-label="Load of the machine">
      <Line row={row} />
      {now.problem && <p class="problem">{now.problem}</p>}
      <Age at={row.at} />
      <ul>
        {now.gpus.map((gpu, at) => <li key={at}><Gpu gpu={gpu} /></li>)}
        <li>
          <span class="name">CPU</span>
          <span class="num">{percent(now.cpu)}</span>
          <Room used={now.ram_used} total={now.ram_total} label="RAM" />
        </li>
        {now.processes.map((server, at) => (
          <li key={`${server.model} ${at}`} class="muted small-text">
            <span class="name long">{server.model}</span>
            <span class="num">{server.gpu != null ? `${bytes(server.gpu)} on the GPU, ` : ""}{bytes(server.ram ?? 0)} RAM</span>
          </li>
        ))}
      </ul>
    </div>
  );
}

/** Says how old the figures are, once they are too old to be of now. */
function Age({ at }: { at: number }) {
  pulse.value; // draw again as time passes
  const age = relayNow() - at;
  return age > FRESH_S ? <p class="hint">The node told this {span(age)} ago, and nothing since.</p> : null;
}

function Gpu({ gpu }: { gpu: GpuNow }) {
  if (gpu.problem) return <span class="bad">{gpu.name}: {gpu.problem}</span>;
  const heat = [
    gpu.temperature != null && `${Math.round(gpu.temperature)} °C`,
    gpu.power != null && `${Math.round(gpu.power)}${gpu.power_limit != null ? ` of ${Math.round(gpu.power_limit)}` : ""} W`,
  ].filter(Boolean);
  return (
    <>
      <span class="name">{gpu.name}</span>
      <span class="num">{percent(gpu.use)}</span>
      <Room used={gpu.used} total={gpu.total} label={`Memory of ${gpu.name}`} />
      <span class="muted num">{heat.join(" · ")}</span>
    </>
  );
}

function Room({ used, total, label }: { used: number | null; total: number | null; label: string }) {
  if (!total) return null;
  return (
    <>
      <meter min={0} max={total} value={used ?? 0} aria-label={label} />
      <span class="muted num">{used === null ? "?" : bytes(used)} of {bytes(total)}</span>
    </>
  );
}

/** The use of the busiest GPU over time, or of the processor. */
function Line({ row }: { row: HardwareView }) {
  const told = row.history.filter((use) => use !== null);
  const newest = told[told.length - 1];
  const what = row.now.gpus.length ? "GPU" : "CPU";
  const label = newest == null ? `${what} use: nothing was told yet` : `${what} use over 15 minutes, now ${Math.round(newest)} %`;
  return (
    <svg class="spark" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={label} preserveAspectRatio="none">
      {sparkline(row.history, WIDTH, HEIGHT).map((points) => <polyline key={points} points={points} />)}
    </svg>
  );
}

const percent = (use: number | null) => (use === null ? "–" : `${Math.round(use)} %`);
