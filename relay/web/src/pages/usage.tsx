// Usage: by day as bars, and by key, model, node or day as a table.

import { useSignal } from "@preact/signals";
import { get } from "../api";
import { compact, count, ms, rate } from "../format";
import type { UsageList, UsageRow } from "../generated/api";
import { everyStep } from "../history";
import { relayNow } from "../live";
import { Chart } from "../parts/chart";
import { Choice, Empty, Name, Page, Problem, paged } from "../parts/basics";
import { useFetched } from "../parts/fetched";

const SPANS: [number, string][] = [[1, "24 hours"], [7, "7 days"], [30, "30 days"], [365, "A year"]];
const SHOWN = 50; // rows a page: the most used keys, models or nodes, and the others as one row
const LOOK_MS = 5000; // how often the figures are fetched again
const GROUPS = ["day", "key", "label", "model", "node"] as const;

export function UsagePage() {
  const days = useSignal(7);
  const by = useSignal<(typeof GROUPS)[number]>("model");
  const step = days.value <= 2 ? "hour" : "day";
  const since = Math.floor(relayNow() - days.value * 86_400);
  const read = async () => {
    const group = by.value;
    const [table, timed] = await Promise.all([
      get<UsageList>(`/usage?by=${group}&since=${since}${group === "day" ? "" : `&limit=${SHOWN}`}`),
      get<UsageList>(`/usage?by=${step}&since=${since}`),
    ]);
    return { table, timed };
  };
  const { value: found, problem } = useFetched(read, [days.value, by.value], LOOK_MS);
  const rows = found?.table.data ?? [];
  const others = found?.table.others;
  const at = useSignal(0);
  const page = paged(rows, at, SHOWN, "rows");
  const points = everyStep(found?.timed.data ?? [], since, relayNow(), step === "day" ? 86_400 : 3600);
  return (
    <Page
      title="Usage"
      actions={<a class="button" href={`/admin/v1/usage?by=${by.value}&since=${since}&format=csv`} download="usage.csv">CSV</a>}
    >
      <Problem text={problem} />
      <div class="choices">
        <Choice label="Time" options={SPANS.map(([value, text]) => [String(value), text])} value={String(days.value)} onChoose={(value) => (days.value = Number(value))} />
        <Choice label="Group by" options={GROUPS.map((name) => [name, `By ${name}`])} value={by.value} onChoose={(value) => (by.value = value as typeof by.value)} />
      </div>
      {found && rows.length === 0 ? (
        <Empty title="Nothing was used in this time">Choose a longer time above, or send a request from Try it.</Empty>
      ) : (
        <>
          <section class="card">
            <h2>Tokens per {step}</h2>
            <Chart
              times={points.map((point) => point.at)}
              lines={[
                { label: "prompt", colour: "--second", bars: true, values: points.map((point) => point.prompt + point.completion) },
                { label: "completion", colour: "--accent", bars: true, values: points.map((point) => point.completion) },
              ]}
              days={step === "day"}
              label={`Tokens per ${step}`}
            />
          </section>
          <div class="card scroll">
            <table class="stack dense">
              <thead>
                <tr>
                  <th>{found?.table.by ?? by.value}</th><th class="num">Requests</th><th class="num">Errors</th><th class="num">Prompt</th><th class="num">Cached</th>
                  <th class="num">Completion</th><th class="num">First token</th><th class="num">First token p99</th><th class="num">Tokens/s</th>
                </tr>
              </thead>
              <tbody>
                {page.shown.map((row) => (
                  <Row key={row.group} row={row} name={found?.table.names[row.group] ?? (row.group || "none")} />
                ))}
                {others && <Row row={others} name={`${count(found?.table.other_groups)} others`} />}
              </tbody>
            </table>
            {page.turn}
          </div>
        </>
      )}
    </Page>
  );
}

function Row({ row, name }: { row: UsageRow; name: string }) {
  return (
    <tr>
      <td class="long"><Name text={name} most={44} /></td>
      <td data-label="Requests" class="num">{count(row.requests)}</td>
      <td data-label="Errors" class={row.errors ? "num bad" : "num"}>{count(row.errors)}</td>
      <td data-label="Prompt" class="num">{compact(row.prompt_tokens)}</td>
      <td data-label="Cached" class="num">{compact(row.cached_tokens)}</td>
      <td data-label="Completion" class="num">{compact(row.completion_tokens)}</td>
      <td data-label="First token" class="num">{ms(row.ttft_p50_ms)}</td>
      <td data-label="First token p99" class="num">{ms(row.ttft_p99_ms)}</td>
      <td data-label="Tokens/s" class="num">{rate(row.tokens_per_s)}</td>
    </tr>
  );
}
