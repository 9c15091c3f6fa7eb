// How a deployment is computed: its options in a form, what is to be sent of them, and in words.

import type { ChangeDeployment, DeploymentView } from "../generated/api";

/** What is chosen from a list, and what is written: numbers, or words apart by spaces. The first word is the default. */
const CHOICES = {
  cache_type: ["Cache type", "f16", "q8_0", "q4_0"],
  flash_attention: ["Flash attention", "auto", "on", "off"],
  reasoning_format: ["Reasoning format", "auto", "none", "deepseek", "deepseek-legacy"],
} as const;
const WRITTEN = {
  gpu_layers: ["GPU layers", "auto", "number"],
  cpu_moe: ["Experts in RAM", "auto", "number"],
  draft_max: ["Draft max", "auto", "number"],
  gpus: ["GPUs", "auto", "numbers"],
  alias: ["Alias", "none", "word"],
  engine_flags: ["Engine flags", "none", "words"],
  environment: ["Environment", "none", "words"],
} as const;
/** What is only said when a model is deployed, as it is written. */
const BESIDE = {
  draft: ["Draft model", "the repository’s"],
  lora: ["LoRA adapter", "none"],
  mmproj: ["Projector", "the repository’s"],
} as const;

type Name = keyof typeof CHOICES | keyof typeof WRITTEN;
type Served = Pick<DeploymentView, Name>;
type Sent = Pick<ChangeDeployment, Name>;
const DEFAULTS: Served = {
  ...{ cache_type: "f16", flash_attention: "auto", reasoning_format: "auto" },
  ...{ gpu_layers: null, cpu_moe: null, draft_max: null, gpus: [], alias: "", engine_flags: [], environment: [] },
};

const written = (value: unknown) => (Array.isArray(value) ? value.join(" ") : String(value ?? ""));

/** The fields of all options; without the cache type where the page has chosen it already. */
export function ServeFields({ of: at = DEFAULTS, cacheType = true }: { of?: Served; cacheType?: boolean }) {
  return (
    <>
      {Object.entries(CHOICES).map(([name, [label, ...words]]) => (cacheType || name !== "cache_type") && (
        <label key={name}>
          {label}
          <select name={name}>
            {words.map((word) => <option key={word} value={word} selected={word === at[name as Name]}>{word}</option>)}
          </select>
        </label>
      ))}
      {Object.entries(WRITTEN).map(([name, [label, hint]]) => <Written key={name} name={name} label={label} hint={hint} value={written(at[name as Name])} />)}
    </>
  );
}

/** The fields of what is downloaded with a model. */
export function BesideFields() {
  return <>{Object.entries(BESIDE).map(([name, [label, hint]]) => <Written key={name} name={name} label={label} hint={hint} />)}</>;
}

function Written({ name, label, hint, value = "" }: { name: string; label: string; hint: string; value?: string }) {
  return (
    <label>
      {label}
      <input name={name} placeholder={hint} defaultValue={value} />
    </label>
  );
}

/** What `form` says otherwise than `was`: older nodes do not know the rest. */
export function serveOf(form: FormData, was: Served = DEFAULTS): Sent {
  const sent: Record<string, unknown> = {};
  for (const [name, [, , kind]] of Object.entries(WRITTEN)) {
    const words = String(form.get(name) ?? "").split(/[\s,]+/).filter(Boolean);
    if (words.join(" ") === written(was[name as Name])) continue;
    sent[name] = { number: words[0] && words[0] !== "auto" ? +words[0] : null, numbers: words.map(Number), word: words.join(), words }[kind];
  }
  for (const name of Object.keys(CHOICES)) {
    const chosen = form.get(name);
    if (chosen !== null && chosen !== was[name as Name]) sent[name] = chosen;
  }
  return sent;
}

/** What is to be downloaded with a model, if `form` says so. */
export function besideOf(form: FormData): Record<string, string> {
  const given = Object.keys(BESIDE).map((name) => [name, String(form.get(name) ?? "").trim()]);
  return Object.fromEntries(given.filter(([, value]) => value));
}

/** What is not the default, in words. */
export function serveText(row: DeploymentView): (string | false)[] {
  return Object.entries({ ...CHOICES, ...WRITTEN }).map(([name, [label, usual]]) => {
    const value = written(row[name as Name]);
    return value !== "" && value !== usual && `${label} ${value}`;
  });
}
