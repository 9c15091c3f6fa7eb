// Small parts that every page is made of.

import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";

export function Page(props: { title: string; hint?: string; actions?: ComponentChildren; children: ComponentChildren }) {
  return (
    <main id="content" tabIndex={-1}>
      <header class="page-head">
        <div>
          <h1>{props.title}</h1>
          {props.hint && <p class="hint">{props.hint}</p>}
        </div>
        {props.actions && <div class="actions">{props.actions}</div>}
      </header>
      {props.children}
    </main>
  );
}

export function Figure(props: { label: string; value: string; unit?: string; note?: string; tone?: "bad" | "good" }) {
  return (
    <div class="figure" role="group" aria-label={props.label}>
      <span class="label">{props.label}</span>
      <span class={`value ${props.tone ?? ""}`}>
        {props.value}
        {props.unit && <small>{props.unit}</small>}
      </span>
      <span class="note">{props.note ?? "\u00a0"}</span>
    </div>
  );
}

export function Badge(props: { state: string }) {
  return <span class={`badge ${props.state}`}>{props.state}</span>;
}

export function Empty(props: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <strong>{props.title}</strong>
      {props.children && <p>{props.children}</p>}
    </div>
  );
}

export function Problem(props: { text: string }) {
  return props.text ? (
    <p class="problem" role="alert">
      {props.text}
    </p>
  ) : null;
}

export function Copy(props: { text: string; label?: string }) {
  const done = useSignal(false);
  const copy = async () => {
    await navigator.clipboard.writeText(props.text);
    done.value = true;
    setTimeout(() => (done.value = false), 1500);
  };
  return (
    <button type="button" class="small" onClick={copy} aria-label={props.label ?? "Copy"}>
      {done.value ? "Copied" : "Copy"}
    </button>
  );
}

export function Code(props: { text: string; label: string }) {
  return (
    <div class="code">
      <pre tabIndex={0} aria-label={props.label}>{props.text}</pre>
      <Copy text={props.text} label={`Copy ${props.label}`} />
    </div>
  );
}

/** A button that asks "Sure?" before it does what can't be undone. */
export function Sure(props: { label: string; question: string; onSure: () => void; name: string }) {
  const asked = useSignal(false);
  useEffect(() => {
    if (!asked.value) return undefined;
    const timer = setTimeout(() => (asked.value = false), 4000);
    return () => clearTimeout(timer);
  }, [asked.value]);
  const click = () => {
    if (asked.value) props.onSure();
    asked.value = !asked.value;
  };
  return (
    <button type="button" class={asked.value ? "small danger sure" : "small danger"} onClick={click} aria-label={`${props.label} ${props.name}`}>
      {asked.value ? props.question : props.label}
    </button>
  );
}

export function Dialog(props: { title: string; onClose: () => void; children: ComponentChildren }) {
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => element.current?.showModal(), []);
  return (
    <dialog ref={element} onClose={props.onClose} aria-label={props.title}>
      <header>
        <h2>{props.title}</h2>
        <button type="button" class="plain" onClick={() => element.current?.close()} aria-label="Close">
          ✕
        </button>
      </header>
      {props.children}
    </dialog>
  );
}

/** What went wrong in `act`, as a sentence for the page. */
export async function told(act: () => Promise<unknown>): Promise<string> {
  try {
    await act();
    return "";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
