// The live feed as signals; components that use them are drawn again when they change.

import { batch, signal } from "@preact/signals";
import { checkSession } from "./api";
import type { Changed, DeploymentView, HardwareView, NodeFigures, NodeView, PulseHistory, PulseView, RequestRow } from "./generated/api";
import { type History, withPulse } from "./history";
import { type Difference, applied, counted } from "./rows";

export const nodes = signal<ReadonlyMap<string, NodeView>>(new Map());
export const requests = signal<ReadonlyMap<string, RequestRow>>(new Map());
export const tokens = signal<ReadonlyMap<string, number>>(new Map());
/** null until the relay has sent it. */
export const deployments = signal<ReadonlyMap<string, DeploymentView> | null>(null);
/** How busy the nodes' machines are, by node; older nodes do not tell. */
export const hardware = signal<ReadonlyMap<string, HardwareView>>(new Map());
/** What each node did in the last seconds. */
export const figures = signal<ReadonlyMap<string, NodeFigures>>(new Map());
export const pulse = signal<PulseView | null>(null);
export const history = signal<History>({ step: 2, until: 0, rates: [], running: [] });
/** Grows whenever what pages have fetched may be out of date. */
export const changes = signal(0);
export const connected = signal(true);
/** Seconds that the relay's clock is ahead of this one. */
export const clockAhead = signal(0);

/** When the feed was last heard, by the relay's clock in seconds. */
export const heardAt = signal(0);

/** The relay sends a pulse every two seconds: after so long a silence the network is gone, or this machine slept. */
const SILENT_MS = 10_000;
const LOOK_MS = 2000;
const AGAIN_MS = 3000;
let lastAt = 0;
let watch: ReturnType<typeof setInterval> | undefined;
let source: EventSource | null = null;
/** Events since the last frame; all are applied together in the next frame. */
let waiting: (() => void)[] = [];

export function relayNow(): number {
  return Date.now() / 1000 + clockAhead.value;
}

export function startFeed(): void {
  stopFeed();
  lastAt = Date.now();
  watch = setInterval(look, LOOK_MS);
  source = new EventSource("/admin/v1/events");
  source.onopen = () => {
    if (!connected.value) changes.value++; // the relay was away, and may have been another since
    connected.value = true;
  };
  source.onerror = () => {
    lose();
    void checkSession(); // the feed also ends when the admin is revoked
    // After a refused request EventSource does not reconnect by itself, so do it here.
    if (source?.readyState === EventSource.CLOSED) setTimeout(() => source?.readyState === EventSource.CLOSED && startFeed(), AGAIN_MS);
  };
  on<Difference<NodeView>>("nodes", (change) => (nodes.value = applied(nodes.value, change)));
  on<Difference<RequestRow>>("requests", (change) => {
    if (change.full || change.set || change.gone) requests.value = applied(requests.value, change);
    tokens.value = counted(tokens.value, change);
  });
  on<Difference<DeploymentView>>("deployments", (change) => {
    deployments.value = applied(deployments.value ?? new Map<string, DeploymentView>(), change);
  });
  on<Difference<HardwareView>>("hardware", (change) => (hardware.value = applied(hardware.value, change)));
  on<Difference<NodeFigures>>("figures", (change) => (figures.value = applied(figures.value, change)));
  on<PulseHistory>("history", (told) => {
    history.value = { step: told.step_s, until: told.until, rates: told.tokens_per_s, running: told.running };
  });
  on<PulseView>("pulse", (told) => {
    pulse.value = told;
    history.value = withPulse(history.value, told);
  });
  on<Changed>("changed", () => changes.value++);
}

/** What is shown is from now on older and older. */
function lose(): void {
  if (connected.value) heardAt.value = lastAt / 1000 + clockAhead.value;
  connected.value = false;
}

/** Give up a connection on which nothing comes, which no error may ever tell. */
function look(): void {
  if (Date.now() - lastAt < SILENT_MS) return;
  lose();
  startFeed();
}

export function stopFeed(): void {
  clearInterval(watch);
  source?.close();
  source = null;
  waiting = [];
}

function on<T>(name: string, take: (value: T) => void): void {
  source?.addEventListener(name, (event) => {
    lastAt = Date.now();
    const value = JSON.parse((event as MessageEvent<string>).data) as T;
    // A tab in the background has no frames, and must not collect events for an hour.
    if (document.hidden) return take(value);
    if (waiting.push(() => take(value)) === 1) requestAnimationFrame(show);
    return undefined;
  });
}

function show(): void {
  const now = waiting;
  waiting = [];
  batch(() => now.forEach((take) => take()));
}

// Apply waiting events when the tab is hidden, before later ones arrive.
document.addEventListener("visibilitychange", () => document.hidden && show());
addEventListener("online", () => source && !connected.value && startFeed());
