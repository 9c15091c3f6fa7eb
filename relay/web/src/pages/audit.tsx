// The audit log, newest first.

import { useSignal } from "@preact/signals";
import { get } from "../api";
import { details } from "../audit";
import { date } from "../format";
import type { AuditList } from "../generated/api";
import { Empty, Name, Problem } from "../parts/basics";
import { useFetched } from "../parts/fetched";

const AT_ONCE = 50;
const MOST = 1000; // the relay sends no more at once

export function AuditLog() {
  const wanted = useSignal(AT_ONCE);
  const { value, problem } = useFetched(() => get<AuditList>(`/audit?limit=${wanted.value}`), [wanted.value]);
  const entries = value?.data ?? [];
  return (
    <section class="card scroll">
      <h2>Audit log</h2>
      <Problem text={problem} />
      {value && entries.length === 0 && <Empty title="Nothing was changed yet" />}
      {entries.length > 0 && (
        <table class="stack">
          <thead><tr><th>When</th><th>Who</th><th>Did</th><th>To</th></tr></thead>
          <tbody>
            {entries.map((entry) => (
              <tr key={entry.id}>
                <td data-label="When" class="muted nowrap">{date(entry.at)}</td>
                <td data-label="Who"><Name text={entry.actor} /></td>
                <td data-label="Did"><code>{entry.action}</code></td>
                <td data-label="To" class="long">
                  <Name text={String(entry.detail["name"] ?? entry.subject)} most={40} /> <span class="muted">{details(entry)}</span>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {entries.length === wanted.value && wanted.value < MOST && <button type="button" class="small older" onClick={() => (wanted.value = Math.min(MOST, wanted.value * 2))}>Older</button>}
      {entries.length === MOST && <p class="hint">Older ones: <code>GET /admin/v1/audit?before=ID</code></p>}
    </section>
  );
}
