// Captured requests: which keys are captured, how one is turned on, one request's prompt and answer, and its replay.

import { useSignal } from "@preact/signals";
import { get, post, remove } from "../api";
import { answerText, readable } from "../captured";
import { bytes, count, date, ms } from "../format";
import type { CaptureList, CapturedRequest, KeyView, ReplayView } from "../generated/api";
import { nodes } from "../live";
import { Dialog, Name, Problem, told } from "../parts/basics";
import { useFetched } from "../parts/fetched";

const LOOK_MS = 5000;
const TIMES: [number, string][] = [[300, "5 minutes"], [600, "10 minutes"], [1800, "30 minutes"], [3600, "an hour"]];

/** Says whose prompts and answers are captured now; nothing while nobody's are. */
export function CaptureNotice() {
  const { value, again } = useFetched(() => get<CaptureList>("/captures"), [], LOOK_MS);
  const problem = useSignal("");
  const stop = async (key: string) => {
    problem.value = await told(() => remove(`/keys/${key}/capture`));
    again();
  };
  return (
    <>
      <Problem text={problem.value} />
      {value?.data.map((one) => (
        <p key={one.key_id} class="notice line wrap" role="status">
          <span class="grow">
            Prompts and answers of <strong><Name text={one.key_name || one.key_id} /></strong> are captured until {date(one.until)}: {count(one.requests)} {one.requests === 1 ? "request" : "requests"}, {bytes(one.size_bytes)} in memory.
          </span>
          <button type="button" class="small" onClick={() => void stop(one.key_id)} aria-label={`Stop and wipe the capture of ${one.key_name}`}>Stop and wipe</button>
        </p>
      ))}
    </>
  );
}

/** Asks for how long a key is to be captured, and says what that means. */
export function CaptureKey({ subject, onClose }: { subject: KeyView; onClose: () => void }) {
  const problem = useSignal("");
  const submit = async (event: Event) => {
    event.preventDefault();
    const for_s = Number(new FormData(event.currentTarget as HTMLFormElement).get("for"));
    problem.value = await told(() => post(`/keys/${subject.id}/capture`, { for_s }));
    if (!problem.value) onClose();
  };
  return (
    <Dialog title={`Capture ${subject.name}`} onClose={onClose}>
      <form onSubmit={submit}>
        <p>Admins can then look at the prompts and answers of this key’s next requests, and send one again. They are in the relay’s memory only, and are wiped at the end. The audit log says who turned it on and who looked.</p>
        <label>
          For
          <select name="for" autofocus>
            {TIMES.map(([seconds, text]) => <option key={seconds} value={seconds} selected={seconds === 600}>{text}</option>)}
          </select>
        </label>
        <Problem text={problem.value} />
        <button type="submit" class="primary">Capture</button>
      </form>
    </Dialog>
  );
}

/** A captured request in its dialog; its texts are fetched when they are asked for, since a look is written down. */
export function Captured({ id }: { id: string }) {
  const found = useSignal<CapturedRequest | null>(null);
  const problem = useSignal("");
  const look = async () => (problem.value = await told(async () => (found.value = await get<CapturedRequest>(`/requests/${encodeURIComponent(id)}/captured`))));
  return (
    <section aria-label="Captured">
      <h3>Prompt and answer</h3>
      <Problem text={problem.value} />
      {!found.value && (
        <p class="line wrap">
          <button type="button" class="small" onClick={() => void look()}>Look at them</button>
          <span class="hint">The audit log says that you did.</span>
        </p>
      )}
      {found.value && (
        <>
          <Text name="Prompt" text={readable(found.value.prompt)} cut={found.value.prompt_cut} />
          <Answer answer={found.value.answer} cut={found.value.answer_cut} />
          <Replay of={found.value} />
        </>
      )}
    </section>
  );
}

function Answer({ answer, cut }: { answer: string; cut: boolean }) {
  const said = answerText(answer);
  return (
    <>
      {said && <Text name="Answer" text={said} cut={cut} />}
      {said ? (
        <details class="cause"><summary>As it was sent</summary><pre class="log" tabIndex={0} aria-label="Answer as it was sent">{answer}</pre></details>
      ) : (
        <Text name="Answer" text={answer} cut={cut} />
      )}
    </>
  );
}

function Text({ name, text, cut }: { name: string; text: string; cut: boolean }) {
  return (
    <figure>
      <figcaption>{name}{cut && ", of which the rest was not captured"}</figcaption>
      <pre class="log short" tabIndex={0} aria-label={name}>{text || "nothing"}</pre>
    </figure>
  );
}

/** Sends the request again, to another node or model if one is chosen. */
function Replay({ of: captured }: { of: CapturedRequest }) {
  const again = useSignal<ReplayView | null>(null);
  const busy = useSignal(false);
  const problem = useSignal("");
  const all = [...nodes.value.values()];
  const models = [...new Set(all.flatMap((node) => node.models))].sort();
  const submit = async (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const node = String(form.get("node"));
    const model = String(form.get("model"));
    busy.value = true;
    problem.value = await told(async () => {
      again.value = await post<ReplayView>(`/requests/${encodeURIComponent(captured.id)}/replay`, { ...(node && { node }), ...(model && { model }) });
    });
    busy.value = false;
  };
  return (
    <>
      <form class="line wrap" onSubmit={submit} aria-label="Replay">
        <label>Node<select name="node" aria-label="Node"><option value="">any</option>{all.map((node) => <option key={node.id} value={node.name}>{node.name}</option>)}</select></label>
        <label>Model<select name="model" aria-label="Model"><option value="">{captured.model || "as it was"}</option>{models.map((id) => <option key={id} value={id}>{id}</option>)}</select></label>
        <button type="submit" disabled={busy.value}>{busy.value ? "Sending …" : "Send again"}</button>
      </form>
      <Problem text={problem.value} />
      {again.value && (
        <section aria-label="Replayed">
          <h3>
            Again: {again.value.status}{again.value.fault && ` ${again.value.fault}`}, {again.value.model || "no model"} on {again.value.node || "no node"}, first token {ms(again.value.ttft_ms)}, in all {ms(again.value.duration_ms)}
          </h3>
          <Answer answer={again.value.answer} cut={again.value.answer_cut} />
        </section>
      )}
    </>
  );
}
