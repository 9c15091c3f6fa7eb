// Small components that all pages use.

import { type Signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { count, cutInTheMiddle } from "../format";
import { moved } from "../route";
import { pageOf } from "../rows";

export function Page(props: { title: string; above?: ComponentChildren; hint?: string; actions?: ComponentChildren; children: ComponentChildren }) {
  const element = useRef<HTMLElement>(null);
  useEffect(() => {
    if (moved) element.current?.focus({ preventScroll: true });
  }, []);
  return (
    <main id="content" tabIndex={-1} ref={element}>
      <header class="page-head">
        <div>
          {props.above && <p class="hint">{props.above}</p>}
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
  return <span class={`badge ${props.state.replaceAll(" ", "-")}`}>{props.state}</span>;
}

/** A name that may be long: cut in the middle, where similar names are alike; a tooltip has all of it. */
export function Name({ text, most = 24 }: { text: string; most?: number }) {
  const cut = cutInTheMiddle(text, most);
  return cut === text ? <>{text}</> : <span title={text}>{cut}</span>;
}

export function Slots(props: { busy: number; total: number | null }) {
  if (props.total === null) return <span class="num muted">{props.busy} busy</span>;
  return (
    <span class="slots">
      <meter min={0} max={Math.max(props.total, 1)} value={props.busy} aria-label="slots busy" />
      <span class="num">{props.busy}/{props.total}</span>
    </span>
  );
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
  const said = useSignal("");
  const copy = async () => {
    // The browser may refuse, and offers no clipboard on an untrusted page.
    said.value = (await told(() => navigator.clipboard.writeText(props.text))) ? "Mark it and press Ctrl+C" : "Copied";
    setTimeout(() => (said.value = ""), 2000);
  };
  return (
    <button type="button" class="small" onClick={copy} aria-label={said.value || (props.label ?? "Copy")} aria-live="polite">
      {said.value || "Copy"}
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

/** A button that asks "Sure?" before an action that can't be undone. */
export function Sure(props: { label: string; question: string; onSure: () => void; name: string }) {
  const asked = useSignal(false);
  useEffect(() => {
    if (!asked.value) return undefined;
    const timer = setTimeout(() => (asked.value = false), 4000);
    return () => clearTimeout(timer);
  }, [asked.value]);
  const click = (event: MouseEvent) => {
    if (event.detail > 1) return; // the second click of a double click is no answer to the question
    if (asked.value) props.onSure();
    asked.value = !asked.value;
  };
  return (
    <button type="button" class={asked.value ? "small danger sure" : "small danger"} onClick={click} aria-label={`${asked.value ? props.question : props.label} ${props.name}`}>
      {asked.value ? props.question : props.label}
    </button>
  );
}

export function Dialog(props: { title: string; wide?: boolean; onClose: () => void; children: ComponentChildren }) {
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const shown = element.current;
    shown?.showModal();
    // Close before unmounting, so that the focus returns to where it was.
    return () => shown?.close();
  }, []);
  return (
    <dialog ref={element} class={props.wide ? "wide" : undefined} onClose={props.onClose} aria-label={props.title}>
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

/** Buttons of which one is pressed. */
export function Choice(props: { label: string; options: string[][]; value: string; onChoose: (value: string) => void }) {
  return (
    <div class="segments" role="group" aria-label={props.label}>
      {props.options.map(([value, text]) => (
        <button key={value} type="button" aria-pressed={value === props.value} onClick={() => props.onChoose(value!)}>{text}</button>
      ))}
    </div>
  );
}

export interface Paged<Row> {
  shown: readonly Row[];
  turn: ComponentChildren;
}

/** A page of a long list, with buttons to change it; `at` is the page's number. */
export function paged<Row>(rows: readonly Row[], at: Signal<number>, size: number, noun: string): Paged<Row> {
  const page = pageOf(rows, at.value, size);
  if (rows.length <= size) return { shown: page.shown, turn: null };
  const first = page.at * size;
  return {
    shown: page.shown,
    turn: (
      <nav class="turn" aria-label={`Pages of ${noun}`}>
        <span class="muted num">
          {count(first + 1)}–{count(first + page.shown.length)} of {count(rows.length)} {noun}
        </span>
        <button type="button" class="small" disabled={page.at === 0} onClick={() => (at.value = page.at - 1)}>Previous</button>
        <button type="button" class="small" disabled={first + size >= rows.length} onClick={() => (at.value = page.at + 1)}>Next</button>
      </nav>
    ),
  };
}

/** Run `act`; return the error as a sentence for the page, or "". */
export async function told(act: () => Promise<unknown>): Promise<string> {
  try {
    await act();
    return "";
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
