// How apps call this relay: one snippet at a time, by language or program.

import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../api";
import type { WhoAmI } from "../generated/api";
import { baseUrl } from "../session";
import { snippets } from "../snippets";
import { Copy, told } from "./basics";

// Kept while other pages are shown.
const chosen = signal("curl");
/** Whether the relay's certificate is from its own authority, which callers must be told to trust. */
const privateCa = signal(false);

export function SnippetBox(props: { secret: string; model: string }) {
  useEffect(() => {
    void told(async () => (privateCa.value = (await get<WhoAmI>("/whoami")).pin !== null));
  }, []);
  const shown = snippets(baseUrl, props.secret || "wai_sk_…", props.model || "MODEL", privateCa.value);
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
