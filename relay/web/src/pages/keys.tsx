// API keys: create one (shown once), limit, label, rotate and revoke it.

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { get, patch, post, remove } from "../api";
import { compact, date } from "../format";
import { type CreatedKey, type KeyLimits, type KeyList, type KeyView, NO_LIMITS } from "../generated/api";
import { type Limit, day, differing, limitsOf, limitsText, ofKind } from "../limits";
import { nodes, relayNow } from "../live";
import { Code, Dialog, Empty, Name, Page, Problem, Sure, paged, told } from "../parts/basics";
import { useFetched } from "../parts/fetched";
import { SnippetBox } from "../parts/snippet_box";
import { baseUrl } from "../session";
import { CaptureKey, CaptureNotice } from "./captured";

const SHOWN = 25; // rows a page
const AT_ONCE = 1000; // keys, some 300 KB: read within a frame
const GRACES: [number, string][] = [[86_400, "a day more"], [3600, "an hour more"], [7 * 86_400, "a week more"], [30 * 86_400, "30 days more"], [0, "no moment more, nor any before it"]];
const FILTER_FROM = 10; // fewer need no filter

/** Fetch all keys in pieces: parsing ten thousand at once would block several frames. */
async function allKeys(over: () => boolean): Promise<KeyView[]> {
  const all: KeyView[] = [];
  for (let last = ""; !over(); ) {
    const { data } = await get<KeyList>(`/keys?limit=${AT_ONCE}${last && `&after=${last}`}`);
    all.push(...data);
    if (data.length < AT_ONCE) break;
    last = data.at(-1)!.id;
  }
  return all;
}

export function KeysPage() {
  const { value: keys, problem: unread } = useFetched(allKeys);
  const filter = useSignal("");
  const editing = useSignal<KeyView | "new" | null>(null);
  const rotating = useSignal<KeyView | null>(null);
  const capturing = useSignal<KeyView | null>(null);
  const problem = useSignal("");
  const revoke = async (key: KeyView) => (problem.value = await told(() => remove(`/keys/${key.id}`)));
  const found = useMemo(() => {
    const wanted = filter.value.trim().toLowerCase();
    const all = (keys ?? []).toReversed();
    return wanted ? all.filter((key) => `${key.name} ${key.prefix} ${key.labels.join(" ")}`.toLowerCase().includes(wanted)) : all;
  }, [keys, filter.value]);
  const at = useSignal(0);
  const page = paged(found, at, SHOWN, "keys");
  const start = (event: { currentTarget: HTMLInputElement }) => {
    filter.value = event.currentTarget.value;
    at.value = 0;
  };
  return (
    <Page title="Keys" actions={<button type="button" class="primary" onClick={() => (editing.value = "new")}>Create a key</button>}>
      <CaptureNotice />
      <Problem text={problem.value || unread} />
      {(keys?.length ?? 0) >= FILTER_FROM && (
        <input type="search" class="filter" placeholder="Filter by name or label" aria-label="Filter keys" value={filter} onInput={start} />
      )}
      {keys?.length === 0 && <Empty title="No key yet">An app needs one to call the relay. Create one, and paste it where the app asks for an API key.</Empty>}
      {!!keys?.length && found.length === 0 && <Empty title="No key is called that" />}
      {found.length > 0 && (
        <div class="card scroll">
          <table class="stack">
            <thead>
              <tr><th>Name</th><th>Key</th><th>Limits</th><th>This month</th><th>Last used</th><th><span class="unseen">Actions</span></th></tr>
            </thead>
            <tbody>
              {page.shown.map((key) => (
                <tr key={key.id}>
                  <td data-label="Name" class="long">
                    <strong><Name text={key.name} most={32} /></strong>
                    {key.labels.length > 0 && <p class="hint">{key.labels.join(", ")}</p>}
                  </td>
                  <td data-label="Key">
                    <code>{key.prefix}…</code>
                    {key.former_until !== null && key.former_until > relayNow() && <p class="hint">the former until {date(key.former_until)}</p>}
                  </td>
                  <td data-label="Limits" class="muted long">{limitsText(key.limits, relayNow())}</td>
                  <td data-label="This month"><Budget used={key.month_tokens} limit={key.limits.monthly_tokens} /></td>
                  <td data-label="Last used" class="muted nowrap" title={`created ${date(key.created_at)}`}>{key.last_used_at === null ? "never" : date(key.last_used_at)}</td>
                  <td class="row-actions">
                    <button type="button" class="small" onClick={() => (editing.value = key)} aria-label={`Limits of ${key.name}`}>Limits</button>
                    <button type="button" class="small" onClick={() => (rotating.value = key)} aria-label={`Rotate ${key.name}`}>Rotate</button>
                    <button type="button" class="small" onClick={() => (capturing.value = key)} aria-label={`Capture ${key.name}`}>Capture</button>
                    <Sure label="Revoke" question="Revoke for good?" name={key.name} onSure={() => revoke(key)} />
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
          {page.turn}
        </div>
      )}
      {editing.value && <EditKey subject={editing.value} onClose={() => (editing.value = null)} />}
      {capturing.value && <CaptureKey subject={capturing.value} onClose={() => (capturing.value = null)} />}
      {rotating.value && <RotateKey subject={rotating.value} onClose={() => (rotating.value = null)} />}
    </Page>
  );
}

function EditKey(props: { subject: KeyView | "new"; onClose: () => void }) {
  const { subject } = props;
  const known = subject === "new" ? null : subject;
  const problem = useSignal("");
  const secret = useSignal("");
  const limits = known?.limits ?? NO_LIMITS;
  const submit = async (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const wanted = limitsOf(form, known?.limits ?? null);
    const labels = String(form.get("labels")).split(",").map((one) => one.trim()).filter(Boolean);
    problem.value = await told(async () => {
      if (known) {
        await patch(`/keys/${known.id}`, { limits: differing(wanted, known.limits), ...differing({ labels }, { labels: known.labels }) });
        props.onClose();
      } else {
        secret.value = (await post<CreatedKey>("/keys", { name: String(form.get("name")).trim(), limits: differing(wanted, NO_LIMITS), labels })).key;
      }
    });
  };
  return (
    <Dialog title={known ? `Limits of ${known.name}` : "Create a key"} wide={!!secret.value} onClose={props.onClose}>
      {secret.value ? (
        <Secret text={secret.value} />
      ) : (
        <form onSubmit={submit}>
          {!known && <label>Name<input name="name" required maxLength={64} autofocus placeholder="my-app" /></label>}
          <label>Labels, for usage<input name="labels" placeholder="none, or a, b" defaultValue={known?.labels.join(", ") ?? ""} /></label>
          <fieldset>
            <legend>Limits <span class="muted">(empty: none)</span></legend>
            <div class="grid">
              {ofKind("count").map((limit) => <Field key={limit.name} limit={limit} limits={limits} />)}
            </div>
            <div class="grid">
              {[...ofKind("names"), ...ofKind("time"), ...ofKind("rank")].map((limit) => <Field key={limit.name} limit={limit} limits={limits} />)}
            </div>
            {ofKind("switch").map(({ name, label }) => (
              <label key={name} class="check"><input name={name} type="checkbox" defaultChecked={limits[name]} />{label}</label>
            ))}
          </fieldset>
          <Problem text={problem.value} />
          <button type="submit" class="primary">{known ? "Save" : "Create"}</button>
        </form>
      )}
    </Dialog>
  );
}

/** A secret that is shown once, and how to use it. */
function Secret(props: { text: string }) {
  const model = [...nodes.value.values()].flatMap((node) => node.models)[0] ?? "";
  return (
    <>
      <p>Copy it now: it is shown this once, and only its hash is kept.</p>
      <Code text={props.text} label="key" />
      <p>The base URL for OpenAI's SDKs:</p>
      <Code text={baseUrl} label="base URL" />
      <SnippetBox secret={props.text} model={model} />
    </>
  );
}

function RotateKey(props: { subject: KeyView; onClose: () => void }) {
  const problem = useSignal("");
  const secret = useSignal("");
  const submit = async (event: Event) => {
    event.preventDefault();
    const grace_s = Number(new FormData(event.currentTarget as HTMLFormElement).get("grace"));
    problem.value = await told(async () => (secret.value = (await post<CreatedKey>(`/keys/${props.subject.id}/rotate`, { grace_s })).key));
  };
  return (
    <Dialog title={`Rotate ${props.subject.name}`} wide={!!secret.value} onClose={props.onClose}>
      {secret.value ? (
        <Secret text={secret.value} />
      ) : (
        <form onSubmit={submit}>
          <p>The key gets another secret. Its name, its limits and its usage stay.</p>
          <label>
            The former secret is good for
            <select name="grace" autofocus defaultValue="86400">
              {GRACES.map(([seconds, text]) => <option key={seconds} value={seconds}>{text}</option>)}
            </select>
          </label>
          <Problem text={problem.value} />
          <button type="submit" class="primary">Rotate</button>
        </form>
      )}
    </Dialog>
  );
}

/** What a key took in this month, of what it may. */
function Budget({ used, limit }: { used: number; limit: number | null }) {
  if (limit === null) return <span class="num muted">{used ? `${compact(used)} tokens` : "–"}</span>;
  return (
    <span class="slots">
      <meter min={0} max={limit} value={Math.min(used, limit)} high={limit * 0.9} optimum={0} aria-label="tokens of this month" />
      <span class="num">{compact(used)} of {compact(limit)}</span>
    </span>
  );
}

function Field({ limit, limits }: { limit: Exclude<Limit, { kind: "switch" }>; limits: KeyLimits }) {
  const { name, label } = limit;
  switch (limit.kind) {
    case "count":
      return <label>{label}<input name={name} type="number" min={limit.min} max={limit.max} defaultValue={String(limits[limit.name] ?? "")} /></label>;
    case "names":
      return <label>{label}<input name={name} placeholder="all, or a, b" defaultValue={limits[limit.name].join(", ")} /></label>;
    case "time":
      return <label>{label}<input name={name} type="date" defaultValue={day(limits[limit.name])} /></label>;
    case "rank":
      return <label>{label}, {`${limit.min} to ${limit.max}`.replace("-", "−")}<input name={name} type="number" min={limit.min} max={limit.max} defaultValue={String(limits[limit.name])} /></label>;
  }
}
