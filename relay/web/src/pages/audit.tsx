// The audit log, newest first.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../api";
import { details } from "../audit";
import { date } from "../format";
import type { AuditList, AuditView } from "../generated/api";
import { changes } from "../live";
import { Empty, Problem, told } from "../parts/basics";

const AT_ONCE = 50;

export function AuditLog() {
  const entries = useSignal<AuditView[] | null>(null);
  const more = useSignal(false);
  const problem = useSignal("");
  const read = async (after: AuditView[]) => {
    const before = after.length ? `&before=${after.at(-1)!.id}` : "";
    problem.value = await told(async () => {
      const { data } = await get<AuditList>(`/audit?limit=${AT_ONCE}${before}`);
      entries.value = [...after, ...data];
      more.value = data.length === AT_ONCE;
    });
  };
  useEffect(() => {
    void read([]);
  }, [changes.value]);
  return (
    <section class="card scroll">
      <h2>Audit log</h2>
      <Problem text={problem.value} />
      {entries.value?.length === 0 && <Empty title="Nothing was changed yet" />}
      {!!entries.value?.length && (
        <table class="stack">
          <thead><tr><th>When</th><th>Who</th><th>Did</th><th>To</th></tr></thead>
          <tbody>
            {entries.value.map((entry) => (
              <tr key={entry.id}>
                <td data-label="When" class="muted nowrap">{date(entry.at)}</td>
                <td data-label="Who">{entry.actor}</td>
                <td data-label="Did"><code>{entry.action}</code></td>
                <td data-label="To" class="long">
                  {String(entry.detail["name"] ?? entry.subject)} <span class="muted">{details(entry)}</span>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {more.value && <button type="button" class="small older" onClick={() => void read(entries.value ?? [])}>Older</button>}
    </section>
  );
}
