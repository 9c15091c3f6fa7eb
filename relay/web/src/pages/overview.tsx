// The overview: what runs now, and the last hour.

import { useComputed } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { get } from "../api";
import { Chart } from "../parts/chart";
import { Badge, Empty, Figure, Name, Page, Problem, Slots } from "../parts/basics";
import { useFetched } from "../parts/fetched";
import { Link } from "../parts/link";
import { byName, compact, count, ms, rate, span } from "../format";
import type { NodeView, ProblemList } from "../generated/api";
import { sinceFirst } from "../history";
import { history, nodes, pulse, relayNow, requests } from "../live";
import { go, ofNode } from "../route";

const LEAST_S = 120; // the chart's shortest span
const LOOK_MS = 5000; // how old the list of problems may be
const SHOWN_PROBLEMS = 12;
const SHOWN = 24; // nodes on this page; the Nodes page has all

export function OverviewPage() {
  const now = pulse.value;
  const all = [...nodes.value.values()].sort(byName);
  const ready = all.filter((node) => node.state === "ready").length;
  const errors = now?.errors_hour ?? 0;
  // Counted as in the navigation, since the pulse is up to two seconds old.
  const waiting = useComputed(() => [...requests.value.values()].filter((row) => row.state === "queued").length).value;
  const live = useComputed(() => requests.value.size).value;
  const chart = useComputed(() => {
    const { step, until } = history.value;
    const rates = sinceFirst(history.value.rates, LEAST_S / step);
    return {
      times: rates.map((_, index) => until - (rates.length - 1 - index) * step),
      lines: [{ label: "tokens/s", colour: "--accent", values: [...rates] }],
    };
  });
  return (
    <Page title="Overview">
      <section class="figures" aria-label="Figures">
        <Figure label="Requests now" value={count(live - waiting)} note={`${count(waiting)} waiting`} />
        <Figure label="Tokens per second" value={rate(now?.tokens_per_s)} note={`${compact(now?.tokens_hour)} in the last hour`} />
        <Figure label="First token, median" value={ms(now?.ttft_p50_ms)} note={`p99 ${ms(now?.ttft_p99_ms)}`} />
        <Figure label="Nodes ready" value={String(ready)} unit={` / ${all.length}`} {...(all.length && !ready ? { tone: "bad" as const } : {})} />
        <Figure
          label="Errors, last hour"
          value={count(errors)}
          note={`of ${count(now?.requests_hour)} ${now?.requests_hour === 1 ? "request" : "requests"}`}
          {...(errors ? { tone: "bad" as const } : {})}
        />
      </section>
      <Problems />
      <section class="card">
        <h2>Tokens per second</h2>
        <Chart {...chart.value} height={220} label="Tokens per second over the last hour" />
      </section>
      <section class="card">
        <h2>Nodes</h2>
        {all.length === 0 ? (
          <Empty title="No node has joined yet">
            <button type="button" class="primary" onClick={() => go("nodes")}>Add a node</button>
          </Empty>
        ) : (
          <ul class="strip">{inNeed(all).slice(0, SHOWN).map((node) => <NodeLine key={node.id} node={node} />)}</ul>
        )}
        {all.length > SHOWN && <p class="below"><Link to="nodes">All {count(all.length)} nodes</Link></p>}
      </section>
    </Page>
  );
}

/** The nodes, those that are not ready first: they are what somebody looks for here. */
function inNeed(all: readonly NodeView[]): NodeView[] {
  return [...all].sort((a, b) => Number(a.state === "ready") - Number(b.state === "ready"));
}

/** What is wrong now, each with what to do; nothing while nothing is wrong. */
function Problems() {
  const { value, problem } = useFetched(() => get<ProblemList>("/problems"), [], LOOK_MS);
  const found = value?.data ?? [];
  if (problem) return <Problem text={`What is wrong is not known now. ${problem}`} />;
  if (found.length === 0) return null;
  return (
    <section class="card" aria-label="Problems">
      <h2>{found.length === 1 ? "A problem" : `${count(found.length)} problems`}</h2>
      <ul class="problems">
        {found.slice(0, SHOWN_PROBLEMS).map((one) => (
          <li key={one.id}>
            <strong>{one.subject === "relay" ? "This relay" : one.subject}</strong>: {one.text}
            {one.since !== null && <span class="muted"> · for {span(relayNow() - one.since)}</span>}
            <p class="hint">{one.advice}</p>
          </li>
        ))}
      </ul>
      {found.length > SHOWN_PROBLEMS && <p class="hint">All of them: <code>wai status</code></p>}
    </section>
  );
}

/** Drawn again only when its node has changed. */
function NodeLine({ node }: { node: NodeView }) {
  return useMemo(
    () => (
      <li>
        <div class="line">
          <Link to={ofNode(node.name)} title={node.name}><strong><Name text={node.name} most={22} /></strong></Link>
          <Badge state={node.state} />
          <Slots busy={node.slots_busy} total={node.slots_total} />
        </div>
        <p class="hint">{node.serving.filter((model) => model.ready).map((model) => model.id).join(", ") || "no model"}</p>
      </li>
    ),
    [node],
  );
}
