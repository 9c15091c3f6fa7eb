// What a page has fetched: read again when something changed, and after a failure until it comes.

import { useComputed, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { ApiError } from "../api";
import { changes } from "../live";

const RETRY_MS = 3000;
const REFUSED = 400; // from here to 499 the relay says that the request is wrong: another try is no better
const FAILED = 500;

export interface Fetched<T> {
  /** What came last, also while a newer answer fails to come; null before the first. */
  value: T | null;
  problem: string;
  again: () => void;
}

/**
 * Read by `read`, again when `needs` or the relay's state change, and every `everyMs`.
 *
 * `over` tells `read` whether its answer is not wanted any more.
 */
export function useFetched<T>(read: (over: () => boolean) => Promise<T>, needs: readonly unknown[] = [], everyMs = 0): Fetched<T> {
  const value = useSignal<T | null>(null);
  const problem = useSignal("");
  const asked = useSignal(0);
  useEffect(() => {
    let over = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const look = async () => {
      let pause = everyMs;
      try {
        const found = await read(() => over);
        if (over) return;
        value.value = found;
        problem.value = "";
      } catch (error) {
        if (over) return;
        problem.value = error instanceof Error ? error.message : String(error);
        const refused = error instanceof ApiError && error.status >= REFUSED && error.status < FAILED;
        pause = refused ? everyMs : RETRY_MS;
      }
      if (pause) timer = setTimeout(look, pause);
    };
    void look();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [changes.value, asked.value, ...needs]);
  return useComputed(() => ({ value: value.value, problem: problem.value, again: () => asked.value++ })).value;
}
