// Who may administer this relay, and who changed what.

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, post, remove } from "../api";
import { date } from "../format";
import { changes } from "../live";
import { Code, Page, Problem, Sure, told } from "../parts/basics";

interface Admin {
  name: string;
  created_at: number;
}

interface Entry {
  id: number;
  at: number;
  actor: string;
  action: string;
  subject: string;
  detail: Record<string, unknown>;
}

export function AuditPage() {
  const admins = useSignal<Admin[]>([]);
  const entries = useSignal<Entry[]>([]);
  const token = useSignal("");
  const problem = useSignal("");
  const act = async (call: () => Promise<unknown>) => (problem.value = await told(call));
  useEffect(() => {
    void act(async () => {
      admins.value = (await get<{ data: Admin[] }>("/admins")).data;
      entries.value = (await get<{ data: Entry[] }>("/audit?limit=200")).data;
    });
  }, [changes.value]);
  const add = (event: Event) => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const name = String(new FormData(form).get("name")).trim();
    void act(async () => {
      token.value = (await post<{ token: string }>("/admins", { name })).token;
      form.reset();
    });
  };
  return (
    <Page title="Admins & audit">
      <Problem text={problem.value} />
      <section class="card">
        <h2>Admins</h2>
        <table>
          <thead><tr><th>Name</th><th>Since</th><th><span class="unseen">Actions</span></th></tr></thead>
          <tbody>
            {admins.value.map((admin) => (
              <tr key={admin.name}>
                <td><strong>{admin.name}</strong></td>
                <td class="muted">{date(admin.created_at)}</td>
                <td class="row-actions">
                  {admin.name !== "local" && (
                    <Sure label="Revoke" question="Revoke the token?" name={admin.name} onSure={() => void act(() => remove(`/admins/${encodeURIComponent(admin.name)}`))} />
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
        <form class="line" onSubmit={add}>
          <input name="name" required maxLength={64} placeholder="name" aria-label="Name of the new admin" />
          <button type="submit">Add an admin</button>
        </form>
        {token.value && <Code text={token.value} label="admin token, shown this once" />}
      </section>
      <section class="card scroll">
        <h2>Audit log</h2>
        <table class="stack">
          <thead><tr><th>When</th><th>Who</th><th>Did</th><th>To</th></tr></thead>
          <tbody>
            {entries.value.map((entry) => (
              <tr key={entry.id}>
                <td data-label="When" class="muted">{date(entry.at)}</td>
                <td data-label="Who">{entry.actor}</td>
                <td data-label="Did"><code>{entry.action}</code></td>
                <td data-label="To" class="long">{String(entry.detail["name"] ?? entry.subject)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
    </Page>
  );
}
