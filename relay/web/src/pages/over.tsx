// The requests that are over, filtered, a page at a time.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../api";
import { briefly, count, ms } from "../format";
import type { FinishedList, FinishedRequest } from "../generated/api";
import { connected, nodes, relayNow } from "../live";
import { Choice, Empty, Name, Problem, told } from "../parts/basics";
import { remember } from "../route";

const AT_ONCE = 50;
const RETRY_MS = 3000;
const SLOW_MS = 5000;
const SPANS = [["", "Any time"], ["3600", "1 hour"], ["86400", "24 hours"], ["604800", "7 days"]];
const KINDS = [["", "All"], ["failed", "Failed"], ["slow", `Slow (${SLOW_MS / 1000} s or more)`]];
const FIELDS = ["key", "model", "node"] as const;

type Filter = Record<"kind" | "span" | (typeof FIELDS)[number], string>;

/** The filter that the address holds. */
function filterOf(address: URLSearchParams): Filter {
  const of = (name: string) => address.get(name) ?? "";
  return { kind: of("kind"), span: of("span"), key: of("key"), model: of("model"), node: of("node") };
}

/** What the relay is asked for; times relative to now are made absolute. */
function queryOf(filter: Filter, before: number | null): URLSearchParams {
  const asked = new URLSearchParams({ limit: String(AT_ONCE) });
  if (filter.kind === "failed") asked.set("failed", "true");
  if (filter.kind === "slow") asked.set("slow_ms", String(SLOW_MS));
  if (filter.span) asked.set("since", String(Math.floor(relayNow() - Number(filter.span))));
  for (const name of FIELDS) if (filter[name]) asked.set(name, filter[name]);
  if (before !== null) asked.set("before", String(before));
  return asked;
}

export function OverRequests(props: { onWhy: (id: string) => void }) {
  const filter = useSignal(filterOf(new URLSearchParams(location.search)));
  const found = useSignal<FinishedList | null>(null);
  const problem = useSignal("");
  const read = async (before: number | null) => {
    const asked = filter.value;
    const said = await told(async () => {
      const page = await get<FinishedList>(`/requests/finished?${queryOf(asked, before)}`);
      if (asked !== filter.value) return; // another choice was made meanwhile
      const earlier = before === null ? null : found.value;
      found.value = { ...page, data: [...(earlier?.data ?? []), ...page.data], key_names: { ...earlier?.key_names, ...page.key_names } };
    });
    if (asked !== filter.value) return;
    problem.value = said;
  };
  // Read again once the relay is back; else by the button, so that rows do not move under the pointer.
  useEffect(() => {
    if (connected.value) void read(null);
  }, [filter.value, connected.value]);
  useEffect(() => {
    if (!problem.value || !connected.value) return undefined;
    const timer = setTimeout(() => void read(null), RETRY_MS);
    return () => clearTimeout(timer);
  }, [problem.value, connected.value]);
  const set = (change: Partial<Filter>) => {
    filter.value = { ...filter.value, ...change };
    remember({ over: "", ...filter.value });
  };
  const rows = found.value?.data ?? [];
  const csv = queryOf(filter.value, null);
  csv.set("format", "csv");
  csv.set("limit", "500");
  return (
    <>
      <div class="choices">
        <Choice label="Which" options={KINDS} value={filter.value.kind} onChoose={(kind) => set({ kind })} />
        <Choice label="Time" options={SPANS} value={filter.value.span} onChoose={(span) => set({ span })} />
        {FIELDS.map((name) => (
          <input key={name} class="filter" type="search" placeholder={`Any ${name}`} aria-label={`Only this ${name}`} list={name === "node" ? "node-names" : undefined} defaultValue={filter.value[name]} onChange={(event) => set({ [name]: event.currentTarget.value.trim() })} />
        ))}
        <datalist id="node-names">{[...nodes.value.values()].map((node) => <option key={node.id} value={node.name} />)}</datalist>
        <button type="button" onClick={() => void read(null)}>Refresh</button>
        <a class="button" href={`/admin/v1/requests/finished?${csv}`} download="requests.csv">CSV</a>
      </div>
      <Problem text={problem.value} />
      {found.value && rows.length === 0 && <Empty title="No such request is kept">Choose a longer time or fewer conditions.</Empty>}
      {rows.length > 0 && (
        <div class="card scroll">
          <table class="stack dense">
            <thead>
              <tr>
                <th>Began</th><th>Status</th><th>Key</th><th>Model</th><th>Node</th>
                <th class="num">First token</th><th class="num">In all</th><th class="num">Tokens</th>
              </tr>
            </thead>
            <tbody>
              {rows.map((row) => (
                <Row key={row.number} row={row} name={found.value?.key_names[row.key_id] ?? row.key_id} onWhy={() => props.onWhy(row.id)} />
              ))}
            </tbody>
          </table>
          {found.value?.next != null && <button type="button" class="small older" onClick={() => void read(found.value!.next)}>Older</button>}
        </div>
      )}
    </>
  );
}

function Row({ row, name, onWhy }: { row: FinishedRequest; name: string; onWhy: () => void }) {
  const failed = !row.cancelled && (row.status >= 400 || row.fault);
  const outcome = row.cancelled ? `${row.status} cancelled` : `${row.status} ${row.fault}`;
  return (
    <tr>
      <td data-label="Began" class="long nowrap">
        <button type="button" class="why" onClick={onWhy} aria-label={`Details of ${row.id}`}>{briefly(row.started_at)}</button>
      </td>
      <td data-label="Status" class={failed ? "bad clip" : "clip"} title={outcome}>{outcome}</td>
      <td data-label="Key" class="nowrap"><Name text={name} most={18} /></td>
      <td data-label="Model" class="long nowrap"><Name text={row.model || "–"} most={26} /></td>
      <td data-label="Node" class="nowrap"><Name text={row.node || "–"} most={18} />{row.relay && <span class="muted"> by <Name text={row.relay} most={14} /></span>}</td>
      <td data-label="First token" class="num">{ms(row.ttft_ms)}</td>
      <td data-label="In all" class="num">{ms(row.duration_ms)}</td>
      <td data-label="Tokens" class="num">{row.tokens_exact ? "" : "~"}{count(row.prompt_tokens)} + {count(row.completion_tokens)}</td>
    </tr>
  );
}
