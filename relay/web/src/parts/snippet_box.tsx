// How apps call this relay: one snippet at a time, by language or program.

import { signal } from "@preact/signals";
import { get } from "../api";
import type { WhoAmI } from "../generated/api";
import { baseUrl } from "../session";
import { snippets } from "../snippets";
import { Copy } from "./basics";
import { useFetched } from "./fetched";

// Kept while other pages are shown.
const chosen = signal("curl");

export function SnippetBox(props: { secret: string; model: string }) {
  const { value: relay } = useFetched(() => get<WhoAmI>("/whoami"));
  const shown = snippets(baseUrl, props.secret || "wai_sk_…", props.model || "MODEL", relay !== null && relay.pin !== null);
  const snippet = shown[chosen.value] ?? "";
  return (
    <>
      <div class="line wrap">
        <div class="segments wrap" role="group" aria-label="Language">
          {Object.keys(shown).map((name) => (
            <button key={name} type="button" aria-pressed={chosen.value === name} onClick={() => (chosen.value = name)}>{name}</button>
          ))}
        </div>
        <span class="spacer" />
        <Copy text={snippet} label={`Copy ${chosen.value} snippet`} />
      </div>
      <div class="code"><pre tabIndex={0} aria-label={`${chosen.value} snippet`}>{snippet}</pre></div>
    </>
  );
}
