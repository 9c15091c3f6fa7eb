// Nodes: a table of all, sorted and filtered; each leads to its own page.

import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { count, cutInTheMiddle, ms, rate, span } from "../format";
import type { NodeView } from "../generated/api";
import { figures, hardware, nodes, pulse, relayNow } from "../live";
import { type NodeRow, busiest, filtered, sorted, troubles } from "../node_rows";
import { Badge, Empty, Name, Page, Slots, paged } from "../parts/basics";
import { Link } from "../parts/link";
import { ofNode, page, parts, remember } from "../route";
import { narrow } from "../theme";
import { AddNode, OpenInvites } from "./invites";
import { NodePage } from "./node";

const SHOWN = 50; // rows a page
const AT_ONCE = 12; // so many rows are drawn in one frame, and the next ones in the next: a phone is slow
const FILTER_FROM = 8; // fewer need no filter
const NAME_CHARS = 28;
/** The columns: by what each sorts, its title, and whether a click sorts the highest first. */
const COLUMNS: [string, string, boolean][] = [
  ["name", "Name", false], ["state", "State", false], ["models", "Models", true], ["slots", "Slots", true], ["queue", "Queue", true],
  ["speed", "Tokens/s", true], ["rtt", "Round trip", false], ["gpu", "GPU", true], ["up", "Up", true], ["version", "Version", false],
];
const FEW = new Set(["name", "state", "slots", "speed", "gpu"]);
const NUMBERS = new Set(["queue", "speed", "rtt", "up"]);

export function NodesPage() {
  const [, about] = parts(page.value);
  return about ? <NodePage key={about} name={about} /> : <NodeTable />;
}

function NodeTable() {
  const kept = new URLSearchParams(location.search);
  const filter = useSignal(kept.get("filter") ?? "");
  const by = useSignal(kept.get("sort") ?? "name");
  const at = useSignal(0);
  const adding = useSignal(false);
  const drawn = useSignal(AT_ONCE);
  useEffect(() => {
    if (drawn.value >= SHOWN) return;
    const frame = requestAnimationFrame(() => (drawn.value += AT_ONCE));
    return () => cancelAnimationFrame(frame);
  }, [drawn.value]);
  const all = [...nodes.value.values()].map((node): NodeRow => ({ node, figures: figures.value.get(node.id), machine: hardware.value.get(node.id) }));
  const found = sorted(filtered(all, filter.value), by.value);
  const columns = narrow.value ? COLUMNS.filter(([name]) => FEW.has(name)) : COLUMNS;
  const shown = paged(found, at, SHOWN, "nodes");
  const show = (change: { filter?: string; sort?: string }) => {
    filter.value = change.filter ?? filter.value;
    by.value = change.sort ?? by.value;
    at.value = 0;
    remember({ filter: filter.value, sort: by.value === "name" ? "" : by.value });
  };
  return (
    <Page title="Nodes" actions={<button type="button" class="primary" onClick={() => (adding.value = true)}>Add a node</button>}>
      {all.length >= FILTER_FROM && (
        <div class="choices">
          <input type="search" class="filter wide" placeholder="Name, state, model or version" aria-label="Filter nodes" value={filter} onInput={(event) => show({ filter: event.currentTarget.value })} />
          <select class="phone" aria-label="Sort by" value={by.value} onChange={(event) => show({ sort: event.currentTarget.value })}>
            {COLUMNS.map(([name, title, down]) => <option key={name} value={down ? `-${name}` : name}>By {title.toLowerCase()}</option>)}
          </select>
        </div>
      )}
      {all.length > 0 && found.length === 0 && <Empty title="No node is like that" />}
      {all.length === 0 && <Empty title="No node has joined yet">Add one: it dials out from the GPU box, nothing is opened on it.</Empty>}
      {found.length > 0 && (
        <div class="card scroll">
          <table class="stack few">
            <thead><tr>{columns.map((column) => <Head key={column[0]} column={column} by={by.value} onSort={(sort) => show({ sort })} />)}</tr></thead>
            <tbody>{shown.shown.slice(0, drawn.value).map((row) => <Row key={row.node.id} row={row} />)}</tbody>
          </table>
          {shown.turn}
        </div>
      )}
      <OpenInvites />
      {adding.value && <AddNode onClose={() => (adding.value = false)} />}
    </Page>
  );
}

function Head({ column: [name, title, downFirst], by, onSort }: { column: [string, string, boolean]; by: string; onSort: (by: string) => void }) {
  const now = by === name ? "ascending" : by === `-${name}` ? "descending" : undefined;
  const next = now === "ascending" || (!now && downFirst) ? `-${name}` : name;
  return (
    <th class={NUMBERS.has(name) ? "num" : undefined} aria-sort={now}>
      <button type="button" class="sort" onClick={() => onSort(next)}>{title}{now && (now === "ascending" ? " ↑" : " ↓")}</button>
    </th>
  );
}

/** Drawn again only when something of it has changed, which in most rows it has not between two events. */
function Row({ row }: { row: NodeRow }) {
  return useMemo(() => cells(row, narrow.value), [row.node, row.figures, row.machine, narrow.value]);
}

/** On a phone a row has its most important cells only; the node's page has the others. */
function cells({ node, figures: now, machine }: NodeRow, few: boolean) {
  const wrong = troubles(node);
  const away = node.state === "offline" || node.state === "reconnecting";
  return (
    <tr class={away ? "stale" : undefined} aria-label={node.name}>
      <td data-label="Name" class="first nowrap">
        <Link to={ofNode(node.name)} title={node.name}><strong>{cutInTheMiddle(node.name, NAME_CHARS)}</strong></Link>
      </td>
      <td data-label="State" class="nowrap">
        <Badge state={node.state} /> {wrong > 0 && <span class="badge failed" title="The node's page says what">{wrong} wrong</span>}
      </td>
      {!few && <td class="nowrap"><Models node={node} /></td>}
      <td data-label="Slots"><Slots busy={node.slots_busy} total={node.slots_total} /></td>
      {!few && <td class="num">{count(node.queued)}</td>}
      <td data-label="Tokens/s" class="num">{away ? "–" : rate(now?.tokens_per_s)}</td>
      {!few && <td class="num">{ms(now?.rtt_ms)}</td>}
      <td data-label="GPU" class="nowrap"><Gpu machine={machine} /></td>
      {!few && <td class="num nowrap"><Uptime since={node.connected_at} /></td>}
      {!few && <td class="muted"><Name text={node.version || "–"} most={14} /></td>}
    </tr>
  );
}

function Models({ node }: { node: NodeView }) {
  const [first] = node.models;
  if (!first) return <span class="muted">none</span>;
  const rest = node.models.length - 1;
  return <span title={node.models.slice(0, 20).join("\n")}>{cutInTheMiddle(first, rest ? 20 : 24)}{rest > 0 && <span class="muted"> +{rest}</span>}</span>;
}

function Gpu({ machine }: { machine: NodeRow["machine"] }) {
  const use = busiest(machine);
  if (!machine || use === null) return <span class="muted">–</span>;
  return (
    <span class="slots" title={machine.now.gpus.map((gpu) => gpu.name).join("\n")}>
      <meter min={0} max={100} value={use} aria-label="GPU use" />
      <span class="num">{Math.round(use)} %</span>
    </span>
  );
}

export function Uptime(props: { since: number | null }) {
  pulse.value; // draw again as time passes, even if nothing else changed
  if (props.since === null) return <>–</>;
  return <>{span(relayNow() - props.since)}</>;
}
